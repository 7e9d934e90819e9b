"""One entry of a scenario as a folder: everything that its evaluation needs, and everything that it leaves behind.

``python -m fastkernels.evaluation.e2e.job FOLDER`` evaluates it, or goes on where a killed run stopped."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.scenario import Entry
from fastkernels.evaluation.scale.job import ENTRY
from fastkernels.runtime.candidate import Lowering

MODEL, CANDIDATES = "model.json", "candidates"
NAMED = ("shipped", "reference", "identity")  # sets of candidates that need no folder


class JobSpec(BaseModel):
    """What is evaluated. ``candidates`` is one of the named sets, or the folder inside the job's own."""

    entry: Entry
    candidates: str
    digests: dict[str, str]
    device: str
    threads: int
    select: tuple[str, ...] = ()
    lowering: Lowering = "auto"
    verify: bool = True

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises EvaluationError where the folder holds none."""
        try:
            return cls.model_validate_json((folder / ENTRY).read_text())
        except (OSError, ValidationError) as error:
            raise EvaluationError(
                f"{folder}: no {ENTRY} of an evaluation there ({str(error).splitlines()[0]}). "
                "Give the folder that `fastkernels eval` made."
            ) from None

    def write(self, folder: Path, *, source: Path | None) -> None:
        """Makes the job's folder, with a copy of the candidates in it: the run stays what it was."""
        folder.mkdir(parents=True, exist_ok=True)
        if source is not None:
            shutil.copytree(
                source, folder / CANDIDATES, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        (folder / ENTRY).write_text(self.model_dump_json(indent=1))

    def source(self, folder: Path) -> str:
        """What to hand to ``patch``."""
        return self.candidates if self.candidates in NAMED else str(folder / CANDIDATES)

    def facts(self) -> dict[str, str]:
        """What a continued run must have in common with its beginning."""
        digest = hashlib.sha256(self.entry.model_dump_json().encode()).hexdigest()[:16]
        candidates = hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()[:16]
        return {
            "entry": digest,
            "candidates": f"{self.candidates} {candidates}",
            "device": self.device,
            "options": f"select {' '.join(self.select) or 'all'}, lowering {self.lowering}, verify {self.verify}",
        }


def main() -> int:
    """Evaluates the folder named on the command line."""
    from fastkernels.evaluation.e2e.run_entry import run_entry

    try:
        run_entry(Path(sys.argv[1]))
    except EvaluationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
