"""One case in one dtype on one device, as the parent holds it: the reference, its parameters, and shared memory."""

from __future__ import annotations

import copy
import functools
import inspect
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastkernels.evaluation.bench.inputs import DEVICE_FAILS, REFUSES, Referee
from fastkernels.evaluation.bench.judge import same_bits
from fastkernels.evaluation.bench.outputs import described, tensors_of
from fastkernels.evaluation.bench.packed import unpack
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.shared import Arena, Place, place
from fastkernels.tasks import Task
from fastkernels.tasks.task import Case
from fastkernels.tasks.tensors import tensors

GROWTH = 1.5  # of an arena that is too small
DRAWS = 4  # of the case, on which the contents of timed calls are based
JITTER = (0.75, 1.25)  # what refreshed values are multiplied by: signs, zeros and infinities stay
OUTLIER = 4.0  # times a parameter's rms, by which a single element grows: enough to be seen in the outputs
PART_SHIFTS = (3, 4, 5, 6, 7, 8)  # of a parameter's elements, halved so many times, are refreshed at once


class Memory:
    """The arenas of a run. They only grow, so that pointers stay the same from case to case; no secret lies in them.

    One that was outgrown goes once the children have let go of it, which they do when they are given the next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.MemPool() if device.type == "cuda" else None
        self._arenas: dict[str, Arena] = {}
        self._receivers: list[Callable[[], None]] = []

    def arena(self, name: str, count: int) -> Arena:
        """The arena called ``name``, of ``count`` bytes at least."""
        old = self._arenas.get(name)
        if old is None or old.size < count:
            if old is not None:
                self._receivers += old.close()
                count = max(count, int(GROWTH * old.size))
                del self._arenas[name]
            self._collect()
            self._arenas[name] = Arena.new(count, self.device, pool=self._pool)
        return self._arenas[name]

    def drop(self, name: str) -> None:
        """Lets go of the arena called ``name``, if there is one; the next of that name is a new one."""
        arena = self._arenas.pop(name, None)
        if arena is not None:
            self._receivers += arena.close()

    def counter(self) -> Arena:
        """Where a child tells its position in a batch: always in the host's memory."""
        if "counter" not in self._arenas:
            self._arenas["counter"] = Arena.new(8, torch.device("cpu"))
        return self._arenas["counter"]

    def close(self) -> None:
        """Gives the memory back. All children have ended: those that were killed counted nothing off themselves."""
        for arena in self._arenas.values():
            self._receivers += arena.close()
        self._arenas.clear()
        for count_off in self._receivers:
            count_off()
        self._receivers.clear()
        self._collect()

    def _collect(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.ipc_collect()


class Site:
    """What every implementation of one case is given, and what the parent keeps to itself."""

    def __init__(self, task: Task, case: Case, dtype: torch.dtype, memory: Memory, seed: int) -> None:
        self.task, self.case, self.dtype, self.memory, self.device = task, case, dtype, memory, memory.device
        self.reference = task.build(case, seed=seed, device=self.device, dtype=dtype).requires_grad_(False)
        self.values = dict(self.reference.named_parameters())
        self.originals = {name: p.detach().clone() for name, p in self.values.items()}
        self.parameters, end = place({n: p.detach().contiguous() for n, p in self.values.items()})
        self._parameter_arena = memory.arena("parameters", end)
        self._outliers: dict[str, int] = {}
        self.publish()
        bound = inspect.signature(task.interface).bind(**case.init)
        bound.apply_defaults()
        self.facts = dict(bound.arguments)
        self._referee: Referee | None = None
        self._laid: tuple[Any, list[list[Place]], int] | None = None

    def publish(self) -> None:
        """Writes the parameters to the shared memory."""
        self._parameter_arena.write(self.parameters, {n: p.detach() for n, p in self.values.items()})

    def refresh(self, generator: torch.Generator) -> None:
        """New values in a part of each parameter, in the reference and behind the pointers that the children have."""
        self.vary(generator)
        self.publish()

    def vary(self, generator: torch.Generator) -> None:
        """New values in a part of each parameter, in the reference alone.

        Which part, and how large it is, is drawn, and mostly it is one element, made large: to see whether a
        parameter has changed all of it must be read.
        """
        for name, value in self.values.items():
            if not value.is_floating_point() or not value.numel():
                continue
            old, flat = self.originals[name].reshape(-1), value.data.reshape(-1)  # copies where there are gaps
            last = self._outliers.pop(name, None)
            if last is not None:
                flat[last] = old[last]
            if secrets.randbelow(4):
                at = self._outliers[name] = secrets.randbelow(len(flat))
                rms = torch.linalg.vector_norm(old, dtype=torch.float32) / len(old) ** 0.5
                flat[at] = old[at] + torch.copysign(OUTLIER * rms, old[at].float())
            else:
                count = max(1, len(flat) >> secrets.choice(PART_SHIFTS))
                start = secrets.randbelow(len(flat) - count + 1)
                part = slice(start, start + count)
                noise = torch.empty(count, device=self.device).uniform_(*JITTER, generator=generator)
                flat[part] = old[part] * noise
            if not value.is_contiguous():
                value.data.copy_(flat.view(value.shape))
        self._referee = None

    def parameters_intact(self) -> bool:
        """Whether the shared parameters still are what was published."""
        shared = self._parameter_arena.views(self.parameters)
        return same_bits(shared, {n: p.detach() for n, p in self.values.items()})

    @property
    def referee(self) -> Referee:
        """The reference in the bench's dtype and in float64, over the present parameters."""
        if self._referee is None:
            self._referee = Referee(
                self.task, self.case, dtype=self.dtype, device=self.device, seed=0, reference=self.reference
            )
        return self._referee

    def lasting_referee(self) -> Referee:
        """A referee over the present parameters that keeps them when they change."""
        reference = copy.deepcopy(self.reference)
        return Referee(self.task, self.case, dtype=self.dtype, device=self.device, seed=0, reference=reference)

    @functools.cached_property
    def draws(self) -> list[Any]:
        """Draws of the case, made once: of a large case each takes a CPU seconds."""
        return self.drawn()

    def drawn(self) -> list[Any]:
        """New draws of the case, packed."""
        return [self.referee.draw(secrets.randbits(62)) for _ in range(DRAWS)]

    def lend(self, runner: Runner) -> list[str]:
        """Builds the implementation in its child, over the shared parameters; tasks whose candidates stand inside it.

        Raises:
            RunnerFailed: BUILD_ERROR, or SKIPPED where it declines the site.
        """
        runner.attach("parameters", self._parameter_arena)
        return runner.build(self.case.init, self.facts, self.dtype, self.parameters)

    def give(self, runner: Runner, arguments: Any) -> Any:
        """Writes arguments to the shared memory; their places there."""
        places, end = place(arguments)
        arena = self.memory.arena("inputs", end)
        runner.attach("inputs", arena)
        arena.write(places, arguments)
        return places

    def outputs_for(self, runner: Runner, expected: Sequence[Any]) -> list[list[Place]]:
        """Places for the outputs of several calls, each as the reference returned them."""
        like = expected[0] if expected and all(one is expected[0] for one in expected) else None
        laid = self._laid
        if laid is None or like is None or laid[0] is not like or len(laid[1]) != len(expected):
            found, end = [], 0
            for one in expected:
                places, end = place([t.detach().contiguous() for t in tensors(one)], start=end)
                found.append(places)
            laid = self._laid = like, found, end
        _, found, end = laid
        runner.attach("outputs", self.memory.arena("outputs", end))
        return found

    def given(self, places: Any) -> Any:
        """The shared arguments as they are now, as views."""
        return self.memory.arena("inputs", 0).views(places)

    def takes(self, arguments: Any) -> bool:
        """Whether the reference takes these arguments (packed), strides and all."""
        try:
            with torch.no_grad():
                self.reference(*unpack(arguments))
        except DEVICE_FAILS:
            raise
        except REFUSES:
            return False
        return True

    def own_sharing(self, arguments: Any) -> list[set[str]]:
        """Whose memory each of the reference's own outputs shares: what a candidate may do too."""
        plain = unpack(arguments)
        with torch.no_grad():
            found = tensors_of(self.reference(*plain))
        return [set(fact["shares"]) for fact in described(found, plain, self.values)]
