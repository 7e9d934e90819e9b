"""What a capture's process is told: one entry of a scenario, and what is kept of its calls."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel

from fastkernels.evaluation.capture.in_worker import Asked
from fastkernels.evaluation.e2e.scenario import Entry
from fastkernels.evaluation.whole_file import whole_file

JOB, DONE = "job.json", "done"


class CaptureJob(BaseModel):
    """One entry in one folder."""

    entry: Entry
    device: str
    threads: int = 0
    asked: Asked
    graphs: bool = True  # also compare with what compiled passes see

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / JOB) as path:
            path.write_text(self.model_dump_json(indent=1))

    @classmethod
    def read(cls, folder: Path) -> Self:
        return cls.model_validate_json((folder / JOB).read_text())
