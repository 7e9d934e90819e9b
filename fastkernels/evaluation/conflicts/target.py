"""What to test: the files that hold candidates, and which class in them, told to a worker as plain JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from torch import nn

from fastkernels.errors import CandidateError
from fastkernels.runtime.candidate import DECLARATION, Candidate, as_candidate
from fastkernels.runtime.load import LEVELS, import_file, load_file
from fastkernels.tasks import Task, all_tasks, get_task, task_for_stem


class Target(BaseModel):
    """A candidate by file; the task and class are found when it is loaded, in a worker."""

    file: Path
    task: str | None = Field(default=None, description="task name; None to read it from the file")
    cls: str | None = Field(default=None, description="qualified class name; None for the one that the task picks")

    @property
    def label(self) -> str:
        """Short name for reports: folder and file, with the class where one was asked for."""
        name = f"{self.file.parent.name}/{self.file.name}"
        return f"{name}:{self.cls}" if self.cls else name

    def load(self) -> Candidate:
        """Imports the file and finds the candidate.

        Raises:
            CandidateError: the file does not import, or which task it implements cannot be told.
        """
        task = get_task(self.task) if self.task else task_of_path(self.file)
        if task is None:
            task = _task_within(self.file)
        loaded = load_file(self.file, task)
        if self.cls is None:
            return loaded
        found = vars(sys.modules[loaded.cls.__module__]).get(self.cls)
        if found is None:
            raise CandidateError(f"{self.label}: no class of this name at the file's top level.")
        return as_candidate(found, task=task, origin=self.label)


def targets_of(source: Any) -> list[Target]:
    """The targets in a candidate folder, a file, a Candidate or a marked class.

    Raises:
        CandidateError: nothing there, or a class that no file defines at its top level.
    """
    if isinstance(source, Candidate):
        return [_of_class(source.cls, source.task.name)]
    if isinstance(source, type):
        return [_of_class(source, as_candidate(source).task.name)]
    path = Path(source).expanduser()
    if path.is_file():
        return [Target(file=path.resolve())]
    if not path.is_dir():
        raise CandidateError(f"conflicts: {path} is neither a file nor a folder. Give a candidate file or folder.")
    files = [f for level in LEVELS for f in sorted((path / level).glob("*.py"))]
    files = files or sorted(path.glob("*.py"))
    found = [Target(file=f.resolve()) for f in files if not f.name.startswith("_")]
    if not found:
        raise CandidateError(f"conflicts: {path} holds no L1/*.py .. L4/*.py and no *.py.")
    return found


def _of_class(cls: type[nn.Module], task: str) -> Target:
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if file is None or getattr(module, cls.__qualname__, None) is not cls:
        raise CandidateError(
            f"{cls.__module__}.{cls.__qualname__}: the matrix runs in processes of its own and needs a class at the "
            "top level of a file."
        )
    return Target(file=Path(file).resolve(), task=task, cls=cls.__qualname__)


def task_of_path(file: Path) -> Task | None:
    """The task that ``L{1..4}/{stem}.py`` names, or None."""
    folder = file.parent.name
    return task_for_stem(int(folder[1]), file.stem) if folder in LEVELS else None


def _task_within(file: Path) -> Task:
    """The task of a file outside the folders: its mark, else the interface whose class name it defines."""
    by_name = {t.interface.__name__: t for t in all_tasks().values()}
    module = import_file(file, f"{file.parent.name}/{file.name}")
    own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    for value in own:
        if DECLARATION in value.__dict__:
            return get_task(value.__dict__[DECLARATION][0])
    for value in own:
        if value.__name__ in by_name:
            return by_name[value.__name__]
    stems = [t for level in range(1, 5) if (t := task_for_stem(level, file.stem)) is not None]
    if stems:
        return stems[0]
    raise CandidateError(
        f"{file.parent.name}/{file.name}: which task? Mark the class with @fastkernels.candidate(TASK), or name it "
        "like the task's interface."
    )
