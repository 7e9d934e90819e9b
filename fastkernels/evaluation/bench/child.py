"""In a child's process: loads one implementation, builds it over the parent's memory, calls it when it is told to.

Nothing here decides anything. The parent owns seeds, contents, clock, comparison and score; what a child says about
itself can only count against it."""

from __future__ import annotations

import gc
import itertools
import json
import pickle
import socket
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.evaluation.bench import wire
from fastkernels.evaluation.bench.audit import Audit
from fastkernels.evaluation.bench.graphed import Replay, captured
from fastkernels.evaluation.bench.loaded import loaded
from fastkernels.evaluation.bench.observe import (
    MOST_NAMES,
    brought,
    launches_of,
    loaded_libraries,
    operators_of,
    without_own_kernels,
)
from fastkernels.evaluation.bench.outputs import described, encode, is_plain, tensors_of
from fastkernels.evaluation.bench.packed import unpack
from fastkernels.evaluation.bench.poison import poison_free_memory, unpoisoned
from fastkernels.evaluation.bench.shared import Arena, Place
from fastkernels.evaluation.bench.snapshot import Snapshot
from fastkernels.tasks.registry import get_task


class Refused(Exception):
    """An order that the implementation does not take: ``code`` says why, as the bench's catalogue does."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def serve(pipe: socket.socket) -> None:
    """Takes orders until the parent closes the socket."""
    harness = Harness()
    while True:
        try:
            message, descriptors = wire.receive(pipe)
        except (EOFError, OSError):
            return
        verb, nonce, arguments = pickle.loads(message)
        del message  # frames can be walked
        if descriptors:
            arguments["descriptors"] = descriptors
        try:
            value = getattr(harness, verb)(**arguments)
            reply = {"nonce": nonce, "value": value}
        except Refused as error:
            reply = {"nonce": nonce, "code": error.code, "error": str(error)}
        except BaseException as error:  # noqa: BLE001 - a candidate may raise anything; the parent judges it
            traceback.print_exc()
            reply = {"nonce": nonce, "code": "CALL_ERROR", "error": f"{type(error).__name__}: {error}"[:1000]}
        wire.send(pipe, json.dumps(reply).encode())


class Harness:
    """The orders that a child takes, one method each."""

    def __init__(self) -> None:
        self.arenas: dict[str, Arena] = {}
        self.device = torch.device("cpu")
        self.module: nn.Module | None = None
        self.forward: Any = None
        self.timed_forward: Any = None
        self.slots: list[tuple[Any, ...]] = []
        self.known: dict[bytes, tuple[Any, ...]] = {}
        self.kept: list[Any] = []
        self.snapshot: Snapshot | None = None
        self.audit = Audit()
        self._synchronize = torch._C._cuda_synchronize if hasattr(torch._C, "_cuda_synchronize") else None

    def start(self, *, device: str, threads: int, flags: dict[str, Any]) -> None:
        """Takes over the parent's number of threads and torch's flags, and the device."""
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
        """Maps one of the parent's arenas; what was mapped under the name before is forgotten."""
        self.arenas[name] = Arena.mapped(handle, descriptors or [])
        if name == "inputs":
            self.known.clear()
            self.slots, self.kept = [], []

    def load(self, *, task: str, source: dict[str, Any], watch: bool) -> dict[str, Any]:
        """Imports the implementation. With ``watch`` everything that it must not touch is noted down first."""
        self.task = get_task(task)
        self.libraries = loaded_libraries()
        if watch:
            self.snapshot = Snapshot.take()
            self.audit.install()
        try:
            self.candidate = loaded(self.task, source)
        except BaseException as error:
            traceback.print_exc()
            raise Refused("IMPORT_ERROR", str(error)[:1000]) from error
        self.compiled = bool(source.get("compiled"))
        declared = self.candidate.supports.dtypes
        return {
            "name": self.candidate.cls.__name__,
            "digest": self.candidate.digest,
            "nondeterministic": bool(getattr(self.candidate.cls, "nondeterministic", False)),
            "dtypes": None if declared is None else [str(d).removeprefix("torch.") for d in declared],
        }

    def build(
        self, *, init: dict[str, Any], facts: dict[str, Any], dtype: torch.dtype, parameters: dict[str, Place]
    ) -> None:
        """Builds the implementation; its parameters then are the parent's memory."""
        self.module, self.forward, self.kept = None, None, []
        refusal = self.candidate.supports.refusal(device=self.device, dtype=dtype, facts=facts)
        if refusal is not None:
            raise Refused("SKIPPED", refusal)
        try:
            with torch.device(self.device):
                module = self.candidate.cls(**init)
            module = module.to(dtype).eval()
            own = dict(module.named_parameters())
            if set(own) != set(parameters):
                raise ValueError(f"parameters {sorted(own)}, the task has {sorted(parameters)}")
            for name, where in parameters.items():
                if own[name].shape != where.shape:
                    raise ValueError(f"{name} is {tuple(own[name].shape)}, the task's {where.shape}")
                own[name].data = self.arenas["parameters"].view(where)
                own[name].requires_grad_(False)
        except BaseException as error:
            traceback.print_exc()
            raise Refused("BUILD_ERROR", f"{type(error).__name__}: {error}"[:1000]) from error
        self.module, self.init, self.dtype = module, init, dtype
        self.forward = self._compiled(module) if self.compiled else module

    def call(self, *, places: Any, outputs: list[Place]) -> dict[str, Any]:
        """One call on the arguments at ``places``, in poisoned memory; the outputs go to the parent's memory."""
        arguments = self._arguments(places)
        poison_free_memory(self.device, [w.span * w.dtype.itemsize for w in outputs])
        try:
            result = self.forward(*arguments)
        finally:
            unpoisoned()
        self._sync()
        told = self._handed_over(result, arguments, outputs)
        self._sync()
        return told

    def bind(self, *, slots: list[Any], mode: str) -> None:
        """The arguments of timed calls, one slot a call, built once: contents change, tensors do not. In the mode
        ``graph`` each slot's call is captured, ``compiled`` is through ``torch.compile``."""
        self.kept = []
        gc.collect()
        gc.freeze()  # what judging and watching left costs timed calls nothing
        self.slots = [unpack(self.arenas["inputs"].views(places)) for places in slots]
        anew = mode == "compiled" and not self.compiled
        self.timed_forward = self._compiled(self.module) if anew else self.forward
        if mode == "graph":
            self.slots = [(replay,) for replay in captured(self.forward, self.slots)]
            self.timed_forward = Replay.__call__

    def timed(self, *, order: list[int]) -> dict[str, Any]:
        """One call for each slot named, in that order, then a device-wide synchronisation. All outputs are kept.

        The position in the batch is told in shared memory before each call: the parent may change what comes later.
        """
        coming = _counted([self.slots[i] for i in order], memoryview(self.arenas["counter"].buffer).cast("q"))
        order.clear()
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.kept = list(itertools.starmap(self.timed_forward, coming))
            end.record()
            self._sync()
            return {"events": start.elapsed_time(end) / 1e3}
        self.kept = list(itertools.starmap(self.timed_forward, coming))
        return {"events": None}

    def collect(self, *, order: list[int], outputs: list[list[Place]]) -> dict[str, Any]:
        """Hands over the outputs of all calls of the last timed batch; what is told of them, once for each kind."""
        kinds: dict[str, int] = {}
        found: list[Any] = []
        which: list[int] = []
        for result, slot, places in zip(self.kept, order, outputs, strict=True):
            arguments = self.slots[slot]
            told = self._handed_over(result, getattr(arguments[0], "arguments", arguments), places)
            key = json.dumps(told)
            if key not in kinds:
                kinds[key] = len(found)
                found.append(told)
            which.append(kinds[key])
        self._sync()
        self.kept = []
        return {"kinds": found, "which": which}

    def observe(self, *, places: Any) -> dict[str, Any]:
        """What one call runs, and whether that is what the reference runs."""
        arguments = self._arguments(places)
        own, kernels, seconds = launches_of(lambda: self.forward(*arguments), self.device)
        mine = operators_of(lambda: self.forward(*arguments))
        with torch.device(self.device):
            reference = self.task.interface(**self.init).to(self.dtype).eval()
        for name, parameter in reference.named_parameters():
            parameter.data = dict(self.module.named_parameters())[name].data
        theirs = operators_of(lambda: reference(*arguments))
        self._sync()
        return {
            "own": own,
            "brings": brought(self.device, self.libraries),
            "kernels": kernels or list(dict.fromkeys(o.partition("[")[0] for o in mine))[:MOST_NAMES],
            "kernel_seconds": seconds,
            "delegates": not own and mine == theirs,
        }

    def ghost(self, *, places: Any, outputs: list[Place]) -> dict[str, Any]:
        """One call in which none of the implementation's own kernels do anything."""
        arguments = self._arguments(places)
        poison_free_memory(self.device, [w.span * w.dtype.itemsize for w in outputs])
        try:
            with without_own_kernels() as stopped:
                result = self.forward(*arguments)
        finally:
            unpoisoned()
        self._sync()
        told = self._handed_over(result, arguments, outputs)
        self._sync()
        return {"stopped": list(dict.fromkeys(stopped))[:MOST_NAMES], "told": told}

    def tampered(self) -> list[str]:
        """What of the process is not as it was before the candidate was imported."""
        changed = [] if self.snapshot is None else self.snapshot.differences()
        return changed + self.audit.events

    def _compiled(self, module: Any) -> Any:
        """For these shapes alone: of an earlier case's the compiler would make dynamic ones, and then give up."""
        torch._dynamo.reset()
        return torch.compile(module, dynamic=False)

    def _arguments(self, places: Any) -> tuple[Any, ...]:
        """The same tensor objects for the same places: only their contents differ between calls."""
        key = pickle.dumps(places)
        if key not in self.known:
            self.known[key] = unpack(self.arenas["inputs"].views(places))
        return self.known[key]

    def _handed_over(self, result: Any, arguments: Any, outputs: list[Place]) -> dict[str, Any]:
        found = tensors_of(result)
        copied = []
        for tensor, where in zip(found, outputs, strict=False):
            fits = is_plain(tensor) and tuple(torch.Tensor.size(tensor)) == where.shape and tensor.dtype == where.dtype
            if fits:
                torch.Tensor.copy_(self.arenas["outputs"].view(where), tensor)
            copied.append(fits)
        parameters = dict(self.module.named_parameters()) if self.module is not None else {}
        return {
            "tree": encode(result),
            "tensors": described(found, arguments, parameters),
            "copied": copied + [False] * (len(found) - len(copied)),
        }

    def _sync(self) -> None:
        if self.device.type == "cuda" and self._synchronize is not None:
            self._synchronize()


def _counted(slots: list[tuple[Any, ...]], counter: Any) -> Iterator[tuple[Any, ...]]:
    """Each slot's arguments, after its position was written to the shared counter."""
    slots.reverse()
    position = 0
    while slots:
        counter[0] = position
        position += 1
        yield slots.pop()
    counter[0] = position
