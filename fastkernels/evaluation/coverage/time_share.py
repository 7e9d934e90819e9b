"""Where an unpatched model's time passes: inside given modules, and by class in what is left.

On a GPU it is the kernels' time, each charged to the module whose forward launched it; else the host's own clock."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import record_function
from torch.utils.hooks import RemovableHandle

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.launches import profiled
from fastkernels.patches.dispatch import dispatchers

NO_MODULE = "(no module)"
CLASSES = 8  # classes named in what is left
CPU_SECONDS, CPU_CALLS = 0.5, 10  # without a profiler a call is repeated for so long, and so often at most
RANGE = "fastkernels module "  # what a range of a module is called in a profile; its number follows
HOST_CALL = re.compile(r"cu(da)?[A-Z]\w*")  # a call of CUDA's runtime or driver, as a profiler names it


@dataclass(frozen=True, kw_only=True)
class TimeShare:
    """Shares of the time, which add up to 1 but for the classes that are not named.

    ``inside`` is by path. ``outside`` charges time to the innermost module that it passed in, by that module's class.
    """

    clock: Literal["device", "cpu"]
    inside: Mapping[str, float]
    outside: Mapping[str, float]


def time_share(model: nn.Module, paths: Iterable[str], run: Callable[[], Any]) -> TimeShare:
    """Measures with hooks around modules, which are gone at the end, while ``run`` calls the model in eager mode.

    ``run`` is called more than once, first to warm up. A path below another one counts as part of that.

    Raises:
        EvaluationError: the model is patched or has no such module, or ``run`` does not call it.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(256, 256), nn.Tanh())
    >>> found = time_share(model, ["0"], lambda: model(torch.ones(64, 256)))
    >>> found.clock, list(found.inside), sorted(found.outside)
    ('cpu', ['0'], ['(no module)', 'Sequential', 'Tanh'])
    """
    standing = next((path for path, _ in dispatchers(model)), None)
    if standing is not None:
        raise EvaluationError(
            f"{type(model).__name__} is patched (at {standing or 'the model itself'}), and coverage is of the time "
            "without candidates. Call unpatch() first."
        )
    sites = {path: _module(model, path) for path in outermost(paths)}
    within = {id(m) for site in sites.values() for m in site.modules()}
    others = [m for m in model.modules() if id(m) not in within]
    if any(p.is_cuda for p in model.parameters()):
        return _of_device(model, sites, others, run)
    return _of_host(model, sites, others, run)


def _of_device(
    model: nn.Module, sites: Mapping[str, nn.Module], others: Sequence[nn.Module], run: Callable[[], Any]
) -> TimeShare:
    run()
    ranges = _Ranges()
    with _hooks([*sites.values(), *others], ranges.enter, ranges.leave):
        spent = device_time(profiled(run))
    _require(ranges.entered > 0, model)
    whole = sum(spent.values())
    if not whole:
        raise EvaluationError(f"run() launched nothing on the device that {type(model).__name__} is on.")
    inside = {path: spent[i] / whole for i, path in enumerate(sites)}
    return TimeShare(clock="device", inside=inside, outside=_outside(spent, len(sites), others, inside))


def _of_host(
    model: nn.Module, sites: Mapping[str, nn.Module], others: Sequence[nn.Module], run: Callable[[], Any]
) -> TimeShare:
    """Two measurements: hooks on what is left slow that, which would make the sites look small."""
    started = time.perf_counter()
    run()
    calls = min(CPU_CALLS, math.ceil(CPU_SECONDS / max(time.perf_counter() - started, 1e-9)))
    spent = _host_time([*sites.values()], run, calls)
    whole = sum(spent.values())
    inside = {path: spent[i] / whole for i, path in enumerate(sites)}
    spent = _host_time([*sites.values(), *others], run, calls)
    _require(any(number is not None for number in spent), model)
    return TimeShare(clock="cpu", inside=inside, outside=_outside(spent, len(sites), others, inside))


def _outside(
    spent: Mapping[int | None, float], sites: int, others: Sequence[nn.Module], inside: Mapping[str, float]
) -> dict[str, float]:
    """What the sites leave of 1, divided by class: the largest, and what passed in no module."""
    by_class: Counter[str] = Counter()
    for number, time_in in spent.items():
        if number is None or number >= sites:
            by_class[NO_MODULE if number is None else type(others[number - sites]).__name__] += time_in
    left, rest = sum(by_class.values()), max(0.0, 1.0 - sum(inside.values()))
    named = sorted((name for name in by_class if name != NO_MODULE), key=by_class.__getitem__, reverse=True)[:CLASSES]
    shown = sorted([*named, NO_MODULE], key=by_class.__getitem__, reverse=True)
    return {name: rest * by_class[name] / left for name in shown if by_class[name] > 0}


def outermost(paths: Iterable[str]) -> list[str]:
    """The paths that are below none of the others.

    >>> outermost(["a.b", "a", "ab", "a.b.c"])
    ['a', 'ab']
    """
    every = sorted(set(paths))
    return [p for p in every if not any(p != q and (q == "" or p.startswith(f"{q}.")) for q in every)]


def device_time(events: Sequence[FunctionEvent]) -> Counter[int | None]:
    """Microseconds on the device by number of the innermost range around the launch; None where there is no range.

    By the correlation id of the launch, and not by ``device_time_total`` of the range: that would count nested ranges
    twice, and leave out what no operator of torch launches (Triton).
    """
    ranges, launched, ran = [], {}, []
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            if not event.is_user_annotation:
                ran.append(event)
        elif event.name.startswith(RANGE):
            span = event.time_range
            ranges.append((span.start, span.end, int(event.name.removeprefix(RANGE))))
        elif HOST_CALL.fullmatch(event.name) and not event.is_user_annotation:
            launched[event.id] = event.time_range.start
    ranges.sort(key=lambda r: (r[0], -r[1]))
    spent: Counter[int | None] = Counter()
    opened: list[tuple[float, float, int]] = []
    coming = iter(ranges)
    following = next(coming, None)
    for at, event in sorted(((launched.get(e.id, -math.inf), e) for e in ran), key=lambda x: x[0]):
        while following is not None and following[0] <= at:
            opened.append(following)
            following = next(coming, None)
        while opened and opened[-1][1] < at:
            opened.pop()
        spent[opened[-1][2] if opened else None] += event.time_range.elapsed_us()
    return spent


# -- hooks -------------------------------------------------------------------------------------------------------------


class _Ranges:
    """Opens and closes a range of the profiler for each call of a module."""

    def __init__(self) -> None:
        self.entered = 0
        self._open: list[Any] = []

    def enter(self, number: int) -> None:
        self.entered += 1
        self._open.append(record_function(f"{RANGE}{number}").__enter__())

    def leave(self) -> None:
        self._open.pop().__exit__(None, None, None)


class _Clock:
    """Seconds of the host by module, without what passed in modules within it; ``None`` is outside all of them."""

    def __init__(self) -> None:
        self.spent: Counter[int | None] = Counter()
        self._open: list[list[Any]] = []  # number, start, seconds in modules within

    def enter(self, number: int | None) -> None:
        self._open.append([number, time.perf_counter(), 0.0])

    def leave(self) -> None:
        number, started, within = self._open.pop()
        seconds = time.perf_counter() - started
        self.spent[number] += seconds - within
        if self._open:
            self._open[-1][2] += seconds


def _host_time(modules: Sequence[nn.Module], run: Callable[[], Any], calls: int) -> Counter[int | None]:
    """Of the quickest of several calls: the one from which other processes took least."""
    clocks = []
    for _ in range(calls):
        clock = _Clock()
        with _hooks(modules, clock.enter, clock.leave):
            clock.enter(None)
            run()
            clock.leave()
        clocks.append(clock.spent)
    return min(clocks, key=lambda spent: sum(spent.values()))


@contextlib.contextmanager
def _hooks(modules: Sequence[nn.Module], enter: Callable[[int], None], leave: Callable[[], None]) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    try:
        for number, module in enumerate(modules):
            handles.append(module.register_forward_pre_hook(lambda *_, n=number: enter(n)))  # type: ignore[misc]
            handles.append(module.register_forward_hook(lambda *_: leave(), always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise EvaluationError(f"{type(model).__name__} has no module at {path}: {error}") from None


def _require(called: bool, model: nn.Module) -> None:
    if not called:
        raise EvaluationError(
            f"run() calls no module of this {type(model).__name__}. Give a function that calls the model itself, in "
            "eager mode."
        )
