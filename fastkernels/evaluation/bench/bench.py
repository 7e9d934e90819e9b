"""``fastkernels.bench``: candidates against the best that production has, one operator at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.bench.benched import bench_task, offered
from fastkernels.evaluation.bench.fork_server import ForkServer
from fastkernels.evaluation.bench.pool import Options
from fastkernels.evaluation.bench.result import BenchResult, CaseResult, Mode
from fastkernels.evaluation.bench.roofline import measured_peaks
from fastkernels.evaluation.bench.site import Memory
from fastkernels.evaluation.bench.source import Source, sources_of
from fastkernels.evaluation.e2e.machine import machine
from fastkernels.tasks import get_task
from fastkernels.tasks.task import Case

DTYPES = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float32)}
MODES: tuple[Mode, ...] = ("eager", "graph", "compiled")
LEAST_ROUNDS = 2


def bench(
    candidates: Any = "shipped",
    *,
    targets: Iterable[str] | None = None,
    levels: Iterable[int] | None = None,
    captures: Iterable[Any] | None = None,
    self_test: bool = False,
    device: str | torch.device | None = None,
    dtypes: Iterable[torch.dtype | str] | None = None,
    rounds: int = 8,
    production: bool = False,
    cases: Iterable[str] | None = None,
    timeout: float = 60.0,
    baselines: Mapping[str, Iterable[Any]] | None = None,
    modes: Iterable[Mode] | None = None,
    on_case: Callable[[BenchResult], None] = lambda _: None,
) -> BenchResult:
    """Judges and times each candidate on every case of its task.

    A candidate runs in a process of its own, which never sees a seed, an expected output or the clock.

    Args:
        candidates: a folder with ``L1/*.py`` .. ``L4/*.py``, ``{task name: class or file}``, a list of marked classes,
            one such class, ``"shipped"`` or ``"reference"``.
        targets: names of tasks; all that have a candidate if None.
        levels: levels of tasks, 1 to 4; all if None.
        captures: captured calls (``fastkernels.capture``), whose shapes and values then are the cases.
        self_test: bench the best baseline against itself: the ratio is 1 within noise.
        device: ``"cuda"`` where there is one, else ``"cpu"``.
        dtypes: of inputs and parameters; float32 on the CPU, bfloat16 and float32 on CUDA if None.
        rounds: of interleaved timing, 2 at least; 8 for a 95% interval that holds.
        production: the large shapes seen in serving instead of the small ones.
        cases: names of cases; all if None.
        timeout: seconds that one order to a candidate's process may take.
        baselines: classes or files by task, to compare with instead of all that is known; other tasks keep theirs.
        modes: of timing, ``eager`` always among them; if None eager, on CUDA also ``graph``, and for ``production``
            shapes ``compiled``.
        on_case: is given all that was found so far, whenever a case ends: a long run that is killed then leaves it.

    Raises:
        EvaluationError: no such device, target or case, or fewer than two rounds.
        CandidateError: no such task or folder, or a class that no other process can import.
    """
    if rounds < LEAST_ROUNDS:
        raise EvaluationError(f"bench: {rounds} rounds give no interval. Ask for {LEAST_ROUNDS} at least.")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    there = machine(str(where))
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    started = time.monotonic()
    sources, unknown = sources_of("reference" if self_test else candidates)
    chosen = _chosen(sources, targets, levels)
    options = Options(
        device=where,
        dtypes=_dtypes(dtypes, where),
        rounds=rounds,
        production=production,
        cases=None if cases is None else frozenset(cases),
        timeout=timeout,
        self_test=self_test,
        modes=_modes(where, production, modes),
        baselines={n: tuple(_baselines(n, given)) for n, given in (baselines or {}).items()},
    )
    captured = _captured(captures, chosen) if captures is not None else {}
    without = _without_cases(chosen, options, captured)
    digest = hashlib.sha256("".join(s.digest for c in chosen for s in (c, *c.parts)).encode()).hexdigest()[:12]
    found: list[CaseResult] = []

    def so_far() -> BenchResult:
        return BenchResult(
            mode="self-test" if self_test else "candidates",
            candidate="self-test" if self_test else str(candidates if isinstance(candidates, str) else _named(chosen)),
            digest=digest,
            machine=there,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.monotonic() - started,
            cases=[*found],
            notes=[*(f"{name}: no task has this name" for name in unknown), *without],
        )

    def ended(case: CaseResult) -> None:
        found.append(case)
        on_case(so_far())

    memory = Memory(where)
    with ForkServer() as server:
        if where.type == "cuda":  # while the server imports torch; on the CPU that would be in the way
            for dtype in options.dtypes:
                measured_peaks(where, dtype)
        server.ready()
        try:
            for source in chosen:
                start = len(found)
                found[start:] = bench_task(source, server, memory, options, captured.get(source.task), on_case=ended)
        finally:
            memory.close()
    return so_far()


def _modes(device: torch.device, production: bool, given: Iterable[Mode] | None) -> tuple[Mode, ...]:
    """Graphs are CUDA's; compiling each case takes seconds, so that is done for the shapes that are reported."""
    usual: tuple[Mode, ...] = ("eager", "graph", "compiled") if production else ("eager", "graph")
    wanted = usual if given is None else ("eager", *given)
    possible = tuple(m for m in MODES if m in wanted and (m != "graph" or device.type == "cuda"))
    if unknown := [m for m in wanted if m not in MODES]:
        raise EvaluationError(f"bench: {unknown[0]!r} is no mode. Say {', '.join(MODES)}.")
    return possible


def _baselines(task: str, given: Iterable[Any]) -> Iterator[Source]:
    for one in given:
        yield from sources_of({task: one})[0].values()


def _named(chosen: Sequence[Source]) -> str:
    return ", ".join(s.name for s in chosen)


def _chosen(sources: dict[str, Source], targets: Iterable[str] | None, levels: Iterable[int] | None) -> list[Source]:
    wanted = None if targets is None else {get_task(t).name for t in targets}
    allowed = None if levels is None else set(levels)
    chosen = [
        s
        for name, s in sources.items()
        if (wanted is None or name in wanted) and (allowed is None or get_task(name).level in allowed)
    ]
    without = sorted((wanted or set()) - set(sources))
    if without or not chosen:
        asked = f"{', '.join(without)}: no candidate" if without else "nothing to bench: targets and levels leave none"
        raise EvaluationError(
            f"bench: {asked}. Candidates are given for {', '.join(sources) or 'no task'}; `reference` has one for each."
        )
    return chosen


def _dtypes(given: Iterable[torch.dtype | str] | None, device: torch.device) -> tuple[torch.dtype, ...]:
    if given is None:
        return DTYPES[device.type]
    found = []
    for one in given:
        dtype = getattr(torch, one.removeprefix("torch."), None) if isinstance(one, str) else one
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise EvaluationError(f"bench: {one!r} is no floating-point dtype. Say float32, bfloat16 or float16.")
        found.append(dtype)
    return tuple(found)


def _without_cases(chosen: Sequence[Source], options: Options, captured: Mapping[str, Sequence[Case]]) -> list[str]:
    """Notes on tasks that no case is left of.

    Raises:
        EvaluationError: none has one, or a name that was asked for is no case's.
    """
    given = {s.task: [c.name for c in offered(get_task(s.task), options, captured.get(s.task))] for s in chosen}
    names = {name for all_names in given.values() for name in all_names}
    missing = sorted((options.cases or frozenset()) - names)
    kind = "captured" if captured else "production" if options.production else "small"
    if missing or not names:
        asked = f"no {kind} case is named {', '.join(missing)}" if missing else f"there is no {kind} case"
        there = f" There are {', '.join(sorted(names))}." if names else ""
        raise EvaluationError(f"bench: {asked}, of {', '.join(given)}.{there}")
    left = {task: [n for n in mine if options.cases is None or n in options.cases] for task, mine in given.items()}
    return [f"{task}: no {kind} case, so nothing was benched" for task, mine in left.items() if not mine]


def _captured(captures: Iterable[Any], chosen: Sequence[Source]) -> dict[str, list[Case]]:
    from fastkernels.evaluation.capture.cases import cases_of

    given = list(captures)
    return {s.task: [case for c in given for case in cases_of(c, get_task(s.task))] for s in chosen}
