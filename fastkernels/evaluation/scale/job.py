"""A job: one entry of a scenario on one machine, as a folder and a command; and how it ended."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.whole_file import whole_file

RECORDS = "records.jsonl"  # what a job appends to as it goes
ENTRY = "entry.json"  # what is asked
LOG = "job.log"  # stdout and stderr of all its tries
OUTCOME = "outcome.json"  # how the last try ended


@dataclass(frozen=True, kw_only=True)
class Job:
    """One entry. ``folder`` holds all it needs, and what the command writes there is the result.

    ``command`` runs in a process of its own, in the caller's working directory; ``{folder}`` in it stands for the
    folder's path, which is another one on another machine.

    >>> Job(name="llama", folder=Path("runs/0"), command=("judge", "--in={folder}")).command_in(Path("/tmp/x"))
    ('judge', '--in=/tmp/x')

    Raises:
        EvaluationError: no name or command, fewer than 0 devices, or a limit that is not above 0.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    gpus: int = 0  # devices it needs; 0 runs on the CPU
    environment: dict[str, str] = field(default_factory=dict)  # added to the machine's own
    timeout: float | None = None  # seconds

    def __post_init__(self) -> None:
        if not self.name or not self.command:
            raise EvaluationError(f"job {self.name!r}: a job has a name and a command.")
        if self.gpus < 0:
            raise EvaluationError(f"job {self.name}: gpus={self.gpus}; 0 for the CPU, or a number of devices.")
        if self.timeout is not None and self.timeout <= 0:
            raise EvaluationError(f"job {self.name}: timeout={self.timeout}; seconds above 0, or None.")

    def command_in(self, folder: Path) -> tuple[str, ...]:
        """The command for a folder at this path."""
        return tuple(argument.replace("{folder}", str(folder)) for argument in self.command)

    @property
    def key(self) -> str:
        """A hash of what is asked: command, devices, environment and ``entry.json``; not of the candidate's files."""
        entry = self.folder / ENTRY
        asked = json.dumps([self.command, self.gpus, sorted(self.environment.items())]).encode()
        return hashlib.sha256(asked + (entry.read_bytes() if entry.is_file() else b"")).hexdigest()[:16]


class Outcome(BaseModel):
    """How a job ended; kept in its folder as ``outcome.json``."""

    model_config = ConfigDict(frozen=True)

    name: str
    returncode: int | None = Field(description="of the command, negative for a signal; None where it had none")
    reason: str = Field(default="", description="empty when fine; else the signal, the limit, or the loss of the node")
    seconds: float = Field(default=0.0, description="of the last try")
    where: str = Field(default="", description="local cpu, local cuda 0,1, ray node ID HOST cuda 0")
    log_tail: str = ""
    key: str = Field(default="", description="Job.key of what was run")

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.returncode == 0 and not self.reason

    def save(self, folder: Path) -> None:
        """Writes it whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / OUTCOME) as path:
            path.write_text(self.model_dump_json(indent=2))


@dataclass(frozen=True, kw_only=True)
class Event:
    """For a progress bar. ``records`` and ``bytes`` are the size of ``records.jsonl`` so far."""

    job: str
    kind: Literal["started", "progressed", "finished"]
    records: int = 0  # whole lines
    bytes: int = 0
    outcome: Outcome | None = None  # of finished


def kept_outcome(job: Job) -> Outcome | None:
    """The outcome in the job's folder, where an earlier try of this same job ended well; else None."""
    try:
        outcome = Outcome.model_validate_json((job.folder / OUTCOME).read_text())
    except (FileNotFoundError, ValidationError):
        return None
    return outcome if outcome.ok and outcome.key == job.key else None
