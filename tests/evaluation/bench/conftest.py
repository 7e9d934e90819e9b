"""One fork server and one set of arenas for all tests here: what takes time to start, and holds no state of a case."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fastkernels.evaluation.bench.benched import bench_task
from fastkernels.evaluation.bench.fork_server import ForkServer
from fastkernels.evaluation.bench.judged import Judged
from fastkernels.evaluation.bench.pool import Options
from fastkernels.evaluation.bench.result import CaseResult, Failure, Mode
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.site import Memory, Site
from fastkernels.evaluation.bench.source import Source
from fastkernels.evaluation.bench.timed import Bed
from fastkernels.tasks import get_task
from fastkernels.tasks.task import Case

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    with ForkServer() as started:
        yield started


@pytest.fixture(scope="session")
def memory() -> Iterator[Memory]:
    arenas = Memory(CPU)
    yield arenas
    arenas.close()


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Source]:
    """A candidate's file with this code."""

    def write(code: str, task: str = "relu") -> Source:
        file = tmp_path / f"L{get_task(task).level}" / f"{task}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text("import torch\nfrom torch import nn\n" + code)
        return Source(name=f"{file.parent.name}/{file.name}", task=task, file=str(file))

    return write


@pytest.fixture
def benched(server: ForkServer, memory: Memory, written: Callable[..., Source]) -> Callable[..., CaseResult]:
    """The result of one case for a candidate with this code."""

    def run(code: str, task: str = "relu", case: str = "rows", rounds: int = 2, timeout: float = 20.0) -> CaseResult:
        options = Options(device=CPU, dtypes=(torch.float32,), rounds=rounds, cases=frozenset({case}), timeout=timeout)
        (result,) = bench_task(written(code, task), server, memory, options)
        return result

    return run


@pytest.fixture
def lent(server: ForkServer, memory: Memory, written: Callable[..., Source]) -> Iterator[Callable[..., object]]:
    """A built child with this code, and its site."""
    with contextlib.ExitStack() as stack:

        def start(code: str, task: str = "relu", timeout: float = 20.0) -> tuple[Runner, Site]:
            found = get_task(task)
            runner = stack.enter_context(Runner(server, written(code, task), device=CPU, timeout=timeout))
            runner.load()
            site = Site(found, next(iter(found.cases())), torch.float32, memory, 7)
            site.lend(runner)
            return runner, site

        yield start


@pytest.fixture
def bound(server: ForkServer, written: Callable[..., Source]) -> Iterator[Callable[..., Bed]]:
    """A bed on the GPU with one contestant, of this code or of a class, its calls bound in a mode."""
    with contextlib.ExitStack() as stack:
        arenas = Memory(CUDA)
        stack.callback(arenas.close)

        def start(code: str | type, mode: Mode, slots: int, task: str = "relu", case: str | Case | None = None) -> Bed:
            found = get_task(task)
            if not isinstance(case, Case):
                case = next(c for c in found.cases() if case in (None, c.name))
            if isinstance(code, str):
                source = written(code, task)
            else:
                source = Source(name=code.__name__, task=task, module=code.__module__, cls=code.__qualname__)
            site = Site(found, case, torch.float32, arenas, 7)
            runner = stack.enter_context(Runner(server, source, device=CUDA, timeout=60.0))
            runner.load()
            site.lend(runner)
            sharing = site.own_sharing(site.draws[0])
            bed = Bed(site, {"suspect": runner}, suspect="suspect", judged=Judged(sharing=sharing), mode=mode)
            bed.bind(slots)
            return bed

        yield start


def codes(result: CaseResult) -> set[str]:
    return {failure.code for failure in result.failures}


def trapped(bed: Bed, name: str) -> list[Failure]:
    """As many traps in a row as it takes to know."""
    trap = bed.trap(name)
    while trap.wanted:
        trap.spring()
    return trap.failures()
