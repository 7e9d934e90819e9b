"""Where an implementation is found, so that a child imports it: the parent never runs a candidate's file."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastkernels.errors import CandidateError
from fastkernels.evaluation.bench.baselines.baselines import ImplementationSpec
from fastkernels.runtime.candidate import DECLARATION, Candidate
from fastkernels.runtime.load import LEVELS, shipped_folder
from fastkernels.tasks import Task, all_tasks, get_task, task_for_stem


@dataclass(frozen=True, kw_only=True)
class Source:
    """One implementation of ``task``: a candidate's ``file`` (``cls`` None), or ``cls`` of a module or of a file.

    ``parts`` are the candidates of lower levels beside it: they stand inside it, as where it is deployed.
    """

    name: str
    task: str
    file: str | None = None
    module: str | None = None
    cls: str | None = None
    compiled: bool = False
    digest: str = ""
    parts: tuple[Source, ...] = ()

    def told(self) -> dict[str, Any]:
        """What the child is given."""
        parts = {p.task: p.told() for p in self.parts}
        return {"file": self.file, "module": self.module, "cls": self.cls, "compiled": self.compiled, "parts": parts}

    @classmethod
    def of_spec(cls, spec: ImplementationSpec, task: Task) -> Source:
        """A baseline."""
        return cls(name=spec.name, task=task.name, module=spec.module, cls=spec.cls, compiled=spec.compiled)


def sources_of(candidates: Any) -> tuple[dict[str, Source], list[str]]:
    """The candidates that ``candidates`` names, by task, and the files for which no task is known.

    Args:
        candidates: as ``load_candidates`` takes them: a folder, a dict, a list of marked classes, one such class, or
            ``"shipped"`` or ``"reference"``.

    Raises:
        CandidateError: nothing there, or a class that no other process can import.
    """
    if isinstance(candidates, str) and candidates in ("reference", "identity"):
        return {n: _of_class(t.interface, t, "reference") for n, t in all_tasks().items()}, []
    if isinstance(candidates, str) and candidates == "shipped":
        found, unknown = _folder(shipped_folder())
    elif isinstance(candidates, (str, Path)):
        found, unknown = _folder(Path(candidates).expanduser())
    elif isinstance(candidates, Mapping):
        found, unknown = _collected((get_task(name), c) for name, c in candidates.items()), []
    else:
        classes = [candidates] if isinstance(candidates, type) else list(candidates)
        found, unknown = _collected((_marked_for(c), c) for c in classes), []
    return {name: _with_parts(source, found) for name, source in found.items()}, unknown


def _with_parts(source: Source, all_of_them: Mapping[str, Source]) -> Source:
    level = get_task(source.task).level
    return replace(source, parts=tuple(s for name, s in all_of_them.items() if get_task(name).level < level))


def _folder(folder: Path) -> tuple[dict[str, Source], list[str]]:
    if not folder.is_dir():
        raise CandidateError(f"candidates: {folder} is not a folder. Give one with L1/*.py .. L4/*.py in it.")
    files = [f for level in LEVELS for f in sorted((folder / level).glob("*.py")) if not f.name.startswith("_")]
    if not files:
        raise CandidateError(f"candidates: {folder} holds no L1/*.py .. L4/*.py.")
    found: dict[str, Source] = {}
    unknown = []
    for file in files:
        where = f"{file.parent.name}/{file.name}"
        task = task_for_stem(int(file.parent.name[1:]), file.stem)
        if task is None:
            unknown.append(where)
        elif task.name in found:
            raise CandidateError(f"two candidates for {task.name}: {found[task.name].name} and {where}.")
        else:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
            found[task.name] = Source(name=where, task=task.name, file=str(file.resolve()), digest=digest)
    return found, unknown


def _collected(pairs: Iterable[tuple[Task, Any]]) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for task, given in pairs:
        cls = given.cls if isinstance(given, Candidate) else given
        if task.name in found:
            raise CandidateError(f"two candidates for {task.name}: {found[task.name].name} and {cls.__qualname__}.")
        if isinstance(given, (str, Path)):
            file = Path(given).expanduser().resolve()
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
            found[task.name] = Source(name=file.name, task=task.name, file=str(file), digest=digest)
        else:
            found[task.name] = _of_class(cls, task)
    return found


def _marked_for(given: Any) -> Task:
    if isinstance(given, Candidate):
        return given.task
    named = given.__dict__.get(DECLARATION, (None,))[0] if isinstance(given, type) else None
    if named is None:
        raise CandidateError(f"{given!r}: which task? Mark the class with @fastkernels.candidate(TASK).")
    return get_task(named)


def _of_class(cls: type[nn.Module], task: Task, name: str | None = None) -> Source:
    where = f"{cls.__module__}.{cls.__qualname__}"
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise CandidateError(f"{cls!r}: a candidate is an nn.Module class.")
    try:
        file = Path(inspect.getfile(cls)).resolve()
    except (TypeError, OSError):
        file = None
    if "<locals>" in cls.__qualname__ or (file is None or not file.is_file()):
        raise CandidateError(
            f"{where}: the bench imports candidates in a process of their own, and this class is in no file at module "
            f"level. Put it into a file, or give a folder with L{task.level}/{task.name}.py."
        )
    digest = hashlib.sha256(file.read_bytes() + cls.__qualname__.encode()).hexdigest()[:12]
    module = None if cls.__module__ == "__main__" else cls.__module__
    return Source(
        name=name or where, task=task.name, file=str(file), module=module, cls=cls.__qualname__, digest=digest
    )
