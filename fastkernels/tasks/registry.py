"""Finds tasks: each module under ``tasks/L1`` .. ``L4`` that defines ``TASK``, by name or by candidate file stem."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from fastkernels.errors import CandidateError
from fastkernels.tasks.task import Task

LEVELS = (1, 2, 3, 4)


@functools.cache
def all_tasks() -> Mapping[str, Task]:
    """Every task by name, lowest level first.

    >>> all_tasks()["rms_norm"].level
    1
    """
    found: dict[str, Task] = {}
    for level in LEVELS:
        package = importlib.import_module(f"fastkernels.tasks.L{level}")
        for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda i: i.name):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            task = getattr(module, "TASK", None)
            if isinstance(task, Task):
                found[task.name] = task
    return MappingProxyType(found)


def get_task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        CandidateError: no such task; the message lists the names there are.
    """
    tasks = all_tasks()
    if name not in tasks:
        raise CandidateError(f"no task is called {name!r}. Tasks: {', '.join(tasks)}.")
    return tasks[name]


@functools.cache
def _by_stem() -> Mapping[tuple[int, str], Task]:
    return {(t.level, stem): t for t in all_tasks().values() for stem in (t.name, *t.stems)}


def task_for_stem(level: int, stem: str) -> Task | None:
    """The task that a candidate file ``L{level}/{stem}.py`` implements, or None."""
    return _by_stem().get((level, stem))


@functools.cache
def by_interface() -> Mapping[type, Task]:
    """Tasks by their interface class, for finding interfaces built inside other modules."""
    return MappingProxyType({t.interface: t for t in all_tasks().values()})
