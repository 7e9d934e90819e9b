"""The candidates of ``kernels/``, loaded by path as a user's folder is, and how each is judged."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch

from fastkernels.runtime.candidate import DECLARATION
from fastkernels.tasks import Case, Task, get_task
from fastkernels.tasks.accuracy import Error, measure, worst
from fastkernels.tasks.quality import cast
from fastkernels.tasks.tensors import tensors as flat

FOLDER = Path(__file__).parents[2] / "kernels"


def load(path: Path) -> ModuleType:
    """A module of the folder, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"shipped_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def shipped() -> Mapping[str, type[torch.nn.Module]]:
    """Every candidate class of the folder by the name of its task."""
    found = {}
    for path in sorted(FOLDER.glob("L*/*.py")):
        for cls in vars(load(path)).values():
            if isinstance(cls, type) and DECLARATION in vars(cls):
                found[vars(cls)[DECLARATION][0]] = cls
    return found


def small_cases() -> list[tuple[Task, Case]]:
    """Each shipped task with each of its cases that is not production-sized."""
    tasks = [get_task(name) for name in shipped()]
    return [(task, case) for task in tasks for case in task.cases() if not case.production]


def production_cases() -> list[tuple[Task, Case]]:
    """Each shipped task with its production-sized cases."""
    tasks = [get_task(name) for name in shipped()]
    return [(task, case) for task in tasks for case in task.cases() if case.production]


@torch.no_grad()
def errors_on(task: Task, case: Case, dtype: torch.dtype, device: str, *, wide: torch.dtype) -> tuple[Error, Error]:
    """Errors of the shipped candidate and of the reference, both in ``dtype``, against the reference in ``wide``."""
    arguments = case.draw(torch.Generator().manual_seed(1), torch.device(device), dtype)

    def run(implementation: type[torch.nn.Module] | None, target: torch.dtype) -> list[torch.Tensor]:
        module = task.build(case, implementation=implementation, device=device, dtype=dtype).to(target)
        return flat(module(*cast(arguments, target)))

    before = [t.clone() for t in flat(arguments)]
    baseline, oracle = run(None, dtype), run(None, wide)
    got = run(shipped()[task.name], dtype)
    assert len(got) == len(oracle) == len(baseline) > 0
    for g, b in zip(got, baseline, strict=True):
        assert (g.dtype, g.shape, g.device) == (b.dtype, b.shape, b.device)
    for now, then in zip(flat(arguments), before, strict=True):
        assert torch.equal(now, then), "an input was changed"
    candidate = worst([measure(*p) for p in zip(got, oracle, strict=True)])
    return candidate, worst([measure(*p) for p in zip(baseline, oracle, strict=True)])
