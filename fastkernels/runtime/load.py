"""Candidates from a folder, a dict, a list, one class, or a name: ``shipped``, ``reference``, ``identity``."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fastkernels.errors import CandidateError
from fastkernels.runtime.candidate import DECLARATION, Candidate, Supports, as_candidate
from fastkernels.tasks import Task, all_tasks, get_task, task_for_stem

LEVELS = ("L1", "L2", "L3", "L4")


@dataclass(frozen=True, kw_only=True)
class CandidateSet:
    """Candidates by task, and the files for which this library knows no task.

    ``identity`` sets run each site's own original through the whole machinery: the null arm of a measurement.
    """

    by_task: Mapping[str, Candidate]
    unknown: tuple[str, ...] = ()
    identity: bool = False

    def get(self, task: str) -> Candidate | None:
        return self.by_task.get(task)


def load_candidates(source: Any) -> CandidateSet:
    """The candidates that ``source`` names.

    Args:
        source: a folder with ``L1/*.py`` .. ``L4/*.py``; ``{task name: class}``; a list of classes marked with
            ``@fastkernels.candidate``; one such class; or ``"shipped"``, ``"reference"``, ``"identity"``.

    Raises:
        CandidateError: names the file or class, and the rule it breaks.
    """
    if isinstance(source, CandidateSet):
        return source
    if isinstance(source, str) and source in ("reference", "identity"):
        return _references(identity=source == "identity")
    if isinstance(source, str) and source == "shipped":
        return load_folder(shipped_folder())
    if isinstance(source, (str, Path)):
        return load_folder(Path(source))
    if isinstance(source, Mapping):
        return _collect(c if isinstance(c, Candidate) else as_candidate(c, task=get_task(t)) for t, c in source.items())
    if isinstance(source, type):
        return _collect([as_candidate(source)])
    if isinstance(source, Iterable):
        return _collect(c if isinstance(c, Candidate) else as_candidate(c) for c in source)
    raise CandidateError(f"candidates: a folder, dict, list, class or name is wanted, not {type(source).__name__}.")


def _collect(candidates: Iterable[Candidate], unknown: tuple[str, ...] = ()) -> CandidateSet:
    by_task: dict[str, Candidate] = {}
    for c in candidates:
        if c.task.name in by_task:
            raise CandidateError(f"two candidates for {c.task.name}: {by_task[c.task.name].label} and {c.label}.")
        by_task[c.task.name] = c
    return CandidateSet(by_task=by_task, unknown=unknown)


def reference_candidate(task: Task) -> Candidate:
    """The task's own reference as a candidate: what carries parts that have no seam, and what null arms run."""
    return Candidate(
        task=task, cls=task.interface, origin="reference", digest="reference", supports=Supports(training=True)
    )


def _references(*, identity: bool) -> CandidateSet:
    return CandidateSet(by_task={n: reference_candidate(t) for n, t in all_tasks().items()}, identity=identity)


def shipped_folder() -> Path:
    """Folder of the kernels that come with the library: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "kernels", package.parent / "kernels"):
        if folder.is_dir():
            return folder
    raise CandidateError("the shipped kernels are not installed; reinstall fastkernels.")


def load_folder(folder: Path) -> CandidateSet:
    """Imports every ``L{1..4}/{stem}.py`` below ``folder``.

    Raises:
        CandidateError: no such folder, nothing in it, a file that does not import, or holds no candidate.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise CandidateError(f"candidates: {folder} is not a folder. Give one with L1/*.py .. L4/*.py in it.")
    files = [f for level in LEVELS for f in sorted((folder / level).glob("*.py")) if not f.name.startswith("_")]
    if not files:
        raise CandidateError(f"candidates: {folder} holds no L1/*.py .. L4/*.py.")
    loaded: list[Candidate] = []
    unknown: list[str] = []
    for file in files:
        task = task_for_stem(int(file.parent.name[1:]), file.stem)
        if task is None:
            unknown.append(f"{file.parent.name}/{file.name}")
        else:
            loaded.append(load_file(file, task))
    return _collect(loaded, tuple(unknown))


def load_file(file: Path, task: Task) -> Candidate:
    """The candidate of ``task`` in ``file``: the class of the interface's name, the class marked for the task, or
    the last nn.Module that the file defines."""
    where = f"{file.parent.name}/{file.name}"
    module = import_file(file, where)
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    ]
    named = [c for c in own if c.__name__ == task.interface.__name__]
    marked = [c for c in own if c.__dict__.get(DECLARATION, ("",))[0] == task.name]
    chosen = (named or marked or own)[-1:]
    if not chosen:
        raise CandidateError(
            f"{where}: no nn.Module class here. Define class {task.interface.__name__} with the constructor, forward "
            f"and state names of the task {task.name}."
        )
    return as_candidate(chosen[0], task=task, origin=where)


def import_file(file: Path, where: str) -> ModuleType:
    """The Python module in ``file``, imported once for each content.

    Raises:
        CandidateError: importing it raised; the message names ``where``.
    """
    content = file.read_bytes()
    name = f"fastkernels_candidate_{hashlib.sha256(str(file).encode() + content).hexdigest()[:12]}_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise CandidateError(f"{where}: cannot be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Triton and pickle look a function's module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise CandidateError(f"{where}: importing it raised {type(error).__name__}: {error}") from error
    return module
