"""In a child's process: loads one implementation, builds it over the parent's memory, calls it when it is told to.

Nothing here decides anything. The parent owns seeds, contents, clock, comparison and score; what a child says about
itself can only count against it."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastkernels.evaluation.bench.audit import Audit
from fastkernels.evaluation.bench.batch import batch, counted
from fastkernels.evaluation.bench.built import built
from fastkernels.evaluation.bench.chained import Chained
from fastkernels.evaluation.bench.graphed import captured
from fastkernels.evaluation.bench.loaded import loaded
from fastkernels.evaluation.bench.observe import MOST_NAMES, loaded_libraries, observed, without_own_kernels
from fastkernels.evaluation.bench.outputs import by_kind, handed_over
from fastkernels.evaluation.bench.packed import unpack
from fastkernels.evaluation.bench.parts import Parts
from fastkernels.evaluation.bench.poison import poison_free_memory, unpoisoned
from fastkernels.evaluation.bench.shared import Arena, Moves, Place
from fastkernels.evaluation.bench.snapshot import Snapshot
from fastkernels.patches.build import Resolver
from fastkernels.tasks.registry import get_task


class Refused(Exception):
    """An order that the implementation does not take: ``code`` says why, as the bench's catalogue does."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Harness:
    """The orders that a child takes, one method each."""

    def __init__(self) -> None:
        self.arenas: dict[str, Arena] = {}
        self.device = torch.device("cpu")
        self.module: nn.Module | None = None
        self.forward: Any = None
        self.compiled_forward: Any = None
        self.timed_forward: Any = None
        self.slots: list[tuple[Any, ...]] = []
        self.chained: Chained | None = None  # in graph mode
        self.known: dict[bytes, tuple[Any, ...]] = {}
        self.kept: list[Any] = []
        self.snapshot: Snapshot | None = None
        self.audit = Audit()
        self._synchronize = torch._C._cuda_synchronize if hasattr(torch._C, "_cuda_synchronize") else None

    def start(self, *, device: str, threads: int, flags: dict[str, Any], caches: str | None) -> None:
        """Takes over the parent's number of threads and torch's flags, the device, and the compilers' cache folder."""
        if caches is not None:
            os.environ["TRITON_CACHE_DIR"] = f"{caches}/triton"
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{caches}/inductor"
        self.device = torch.device(device)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(flags["matmul"])
        torch.backends.cudnn.allow_tf32 = flags["cudnn_tf32"]
        torch.set_grad_enabled(False)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.cuda.init()
            torch.zeros(1, device=self.device)

    def attach(self, *, name: str, handle: Any, descriptors: list[int] | None = None) -> None:
        """Maps one of the parent's arenas. What was mapped under the name before, and all that looks at it, goes."""
        if name == "inputs":
            self.known.clear()
            self._unbind()
        if name == "parameters":
            self._forget()
        if self.arenas.pop(name, None) is not None and name == "parameters" and self.device.type == "cuda":
            gc.unfreeze()  # a module may be in a cycle, and what it looks at is to go
            gc.collect()
            gc.freeze()
        self.arenas[name] = Arena.mapped(handle, descriptors or [])

    def detach(self, *, name: str) -> None:
        """Lets go of one of the parent's arenas that nothing here looks at any more."""
        self.arenas.pop(name, None)

    def load(self, *, task: str, source: dict[str, Any]) -> dict[str, Any]:
        """Imports the implementation. Everything that it must not touch is noted down first: of a baseline too, whose
        process is to be like the candidate's."""
        self.task = get_task(task)
        self.libraries = loaded_libraries()
        self.snapshot = Snapshot.take()
        self.audit.install()
        try:
            self.candidate = loaded(self.task, source)
        except BaseException as error:
            traceback.print_exc()
            raise Refused("IMPORT_ERROR", str(error)[:1000]) from error
        self.compiled = bool(source.get("compiled"))
        self.parts = Parts(source.get("parts", {}), device=self.device)
        declared = self.candidate.supports.dtypes
        return {
            "name": self.candidate.cls.__name__,
            "digest": self.candidate.digest,
            "nondeterministic": bool(getattr(self.candidate.cls, "nondeterministic", False)),
            "dtypes": None if declared is None else [str(d).removeprefix("torch.") for d in declared],
        }

    def build(
        self, *, init: dict[str, Any], facts: dict[str, Any], dtype: torch.dtype, parameters: dict[str, Place]
    ) -> list[str]:
        """Builds the implementation over the parent's memory; the tasks whose candidates then stand inside it."""
        self._forget()
        refusal = self.candidate.supports.refusal(device=self.device, dtype=dtype, facts=facts)
        if refusal is not None:
            raise Refused("SKIPPED", refusal)
        self.init, self.dtype, self.parameters = init, dtype, parameters
        try:
            module, inside = self._built(self.candidate.cls, functools.partial(self.parts.candidate, dtype=dtype))
        except BaseException as error:
            traceback.print_exc()
            raise Refused("BUILD_ERROR", f"{type(error).__name__}: {error}"[:1000]) from error
        self.module = module
        # Its forward, which a task's interface names; a __call__ or hooks of its own are no part of that.
        self.forward = self._compiled(module.forward) if self.compiled else module.forward
        return inside

    def call(self, *, places: Any, outputs: list[Place]) -> dict[str, Any]:
        """One call on the arguments at ``places``, in poisoned memory; the outputs go to the parent's memory."""
        arguments = self._arguments(places)
        poison_free_memory(self.device, [w.span * w.dtype.itemsize for w in outputs])
        try:
            result = self.forward(*arguments)
        finally:
            unpoisoned()
        self._sync()
        told = handed_over(result, arguments, self._parameters(), self.arenas["outputs"], outputs)
        self._sync()
        return told

    def bind(self, *, slots: list[Any], mode: str, lengths: list[int]) -> None:
        """The arguments of timed calls, one slot a call, built once: contents change, tensors do not. In the mode
        ``graph`` each slot's call is captured, for batches of these ``lengths``; ``compiled`` is through
        ``torch.compile``."""
        self._unbind()
        gc.collect()
        gc.freeze()  # what judging left costs timed calls nothing
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # however much was called before: all start from the same
        self.slots = [unpack(self.arenas["inputs"].views(places)) for places in slots]
        self.timed_forward = self.forward
        if mode == "compiled" and not self.compiled:
            self.compiled_forward = self.compiled_forward or self._compiled(self.forward)
            self.timed_forward = self.compiled_forward
        if mode == "graph":
            self.chained = Chained(captured(self.forward, self.slots), lengths)

    def timed(self, *, order: list[int], paced: bool = False) -> dict[str, Any]:
        """One call for each slot named, in that order, then a device-wide synchronisation. All outputs are kept.

        The position in the batch is told in shared memory before each call: the parent may change what comes later.
        ``paced``: and only when the device has done all calls before it."""
        synchronize = self._sync if self.device.type == "cuda" else None
        if self.chained is not None:
            self.kept, events = self.chained.timed(order, synchronize)
            return {"events": events}
        counter = memoryview(self.arenas["counter"].buffer).cast("q")
        coming = counted([self.slots[i] for i in order], counter, synchronize if paced else None)
        order.clear()
        self.kept, events = batch(self.timed_forward, coming, synchronize)
        return {"events": events}

    def check(self, *, order: list[int], before: list[Moves], outputs: list[list[Place]]) -> dict[str, Any]:
        """The captured calls of the slots named, in that order. Before each, bytes of the staging arena are brought to
        others; right after it, its outputs to the parent's memory. What is told of them, as by ``collect``."""
        assert self.chained is not None
        parameters, arena = self._parameters(), self.arenas["outputs"]

        def take(result: Any, arguments: tuple[Any, ...], places: list[Place]) -> dict[str, Any]:
            return handed_over(result, arguments, parameters, arena, places)

        return by_kind(self.chained.checked(order, before, outputs, take=take, arenas=self.arenas))

    def collect(self, *, order: list[int], outputs: list[list[Place]]) -> dict[str, Any]:
        """Hands over the outputs of all calls of the last timed batch; what is told of them, once for each kind."""
        parameters, arena = self._parameters(), self.arenas["outputs"]
        found = by_kind(
            handed_over(result, self.slots[slot], parameters, arena, places)
            for result, slot, places in zip(self.kept, order, outputs, strict=True)
        )
        self._sync()
        self.kept = []
        return found

    def observe(self, *, places: Any) -> dict[str, Any]:
        """What a call runs, and whether that is what the reference runs. Leaves a profiler's mark on the process."""
        self._unfreeze()
        arguments = self._arguments(places)
        reference, _ = self._built(self.task.interface)
        found = observed(self.forward, reference, arguments, device=self.device, libraries=self.libraries)
        for kernels in ("brings", "own"):  # those of the candidates inside are judged where these are
            found[kernels] = [name for name in found[kernels] if name not in self.parts.brings]
        self._sync()
        return found

    def ghost(self, *, places: Any, outputs: list[Place]) -> dict[str, Any]:
        """One call in which none of the implementation's own kernels do anything."""
        self._unfreeze()
        arguments = self._arguments(places)
        poison_free_memory(self.device, [w.span * w.dtype.itemsize for w in outputs])
        try:
            with without_own_kernels() as stopped:
                result = self.forward(*arguments)
        finally:
            unpoisoned()
        self._sync()
        told = handed_over(result, arguments, self._parameters(), self.arenas["outputs"], outputs)
        self._sync()
        return {"stopped": list(dict.fromkeys(stopped))[:MOST_NAMES], "told": told}

    def tampered(self) -> list[str]:
        """What of the process is not as it was before the candidate was imported."""
        changed = [] if self.snapshot is None else self.snapshot.differences()
        changed += [f"the harness's {name} was replaced" for name in vars(self) if hasattr(Harness, name)]
        return changed + self.audit.events

    def broken(self) -> bool:
        """Whether the device does nothing more for this process: after an illegal access, say."""
        if self.device.type != "cuda":
            return False
        try:
            torch.zeros(1, device=self.device).add_(1)
            self._sync()
        except RuntimeError:
            return True
        return False

    def _forget(self) -> None:
        """Lets go of the implementation and of what looks at its parameters."""
        self.module = self.forward = self.compiled_forward = self.timed_forward = None
        self._unbind()

    def _unbind(self) -> None:
        """Lets go of the timed calls."""
        self.chained = None
        self.slots, self.kept = [], []

    def _built(self, cls: type[nn.Module], resolve: Resolver | None = None) -> tuple[nn.Module, list[str]]:
        return built(
            cls,
            self.init,
            device=self.device,
            dtype=self.dtype,
            parameters=self._parameters(),
            within=self.task.name,
            resolve=resolve,
        )

    def _unfreeze(self) -> None:
        """Frozen objects are not seen by those who look for kernels among all objects."""
        if self.slots:
            gc.unfreeze()

    def _compiled(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """For these shapes alone: of an earlier case's the compiler would make dynamic ones, and then give up."""
        torch._dynamo.reset()
        return torch.compile(forward, dynamic=False)

    def _arguments(self, places: Any) -> tuple[Any, ...]:
        """The same tensor objects for the same places: only their contents differ between calls."""
        key = pickle.dumps(places)
        if key not in self.known:
            self.known[key] = unpack(self.arenas["inputs"].views(places))
        return self.known[key]

    def _parameters(self) -> dict[str, torch.Tensor]:
        """The parent's memory; to ask the module would be to call the candidate's methods."""
        return {name: self.arenas["parameters"].view(where) for name, where in self.parameters.items()}

    def _sync(self) -> None:
        if self.device.type == "cuda" and self._synchronize is not None:
            self._synchronize()
