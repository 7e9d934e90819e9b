"""What the conflict matrix found: one cell for every candidate and stage."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Status = Literal["pass", "fail", "skip"]
Severity = Literal["error", "warning", "info"]
Automatic = Literal["opaque", "partition"]


class Evidence(BaseModel):
    """What was seen, as exactly as it is known."""

    text: str = Field(default="", description="error text or measured difference")
    file: str | None = Field(default=None, description="file of the user's frame")
    line: int | None = Field(default=None, description="line in that file, from 1")
    node: str | None = Field(default=None, description="operator or graph node")


class Mend(BaseModel):
    """The way out."""

    what: str
    automatic: Automatic | None = Field(default=None, description="how the library mends it without a human, if it can")


class Finding(BaseModel):
    """One violated check of a stage; a cell carries the first, and the codes of the others."""

    code: str
    bucket: str = Field(default="", description="the call: case, rows, dtype")
    evidence: Evidence = Field(default_factory=Evidence)
    predicted: bool = Field(default=False, description="concluded from a trace, not observed on a device")
    advisory: bool = Field(default=False, description="said, but no failure of this candidate as it is declared")


class Cell(BaseModel):
    """One candidate at one stage."""

    candidate: str
    task: str
    stage: str
    status: Status
    code: str | None = Field(default=None, description="stable code of the catalogue; None for a plain pass or skip")
    also: list[str] = Field(default_factory=list, description="further codes found at this stage")
    severity: Severity | None = None
    silent: bool = Field(default=False, description="nothing would have been raised in production")
    predicted: bool = Field(default=False, description="concluded from a trace on the CPU, not observed on a device")
    reason: str = Field(default="", description="why it was skipped, or what was checked")
    buckets: list[str] = Field(default_factory=list, description="calls where it fails: case, rows, dtype")
    evidence: Evidence = Field(default_factory=Evidence)
    mend: Mend | None = None
    root_cause: bool = False
    caused_by: str | None = Field(default=None, description="STAGE:CODE of the failure that this one follows from")
    after_mend: str = Field(default="not run", description="pass, fail, or why the mended candidate was not run")
    seconds: float = Field(default=0.0, description="wall-clock seconds in the stage's process")

    @property
    def contract(self) -> bool:
        """A failure that makes the candidate unfit, not a warning."""
        return self.status == "fail" and self.severity == "error"


class Environment(BaseModel):
    """Where the matrix was measured."""

    python: str
    torch: str
    triton: str | None
    device: str
    versions: dict[str, str] = Field(default_factory=dict, description="engines that are importable")


class ConflictReport(BaseModel):
    """The matrix: cells in the order of candidates and stages."""

    cells: list[Cell]
    environment: Environment
    seconds: float = Field(description="wall-clock seconds of the whole run")

    @property
    def failed(self) -> list[Cell]:
        """Contract cells that fail."""
        return [c for c in self.cells if c.contract]

    @property
    def roots(self) -> list[Cell]:
        """Failures that no earlier failure explains."""
        return [c for c in self.cells if c.root_cause]

    def candidates(self) -> list[str]:
        """Names of the candidates, in order."""
        return list(dict.fromkeys(c.candidate for c in self.cells))

    def of(self, candidate: str) -> list[Cell]:
        """The cells of one candidate."""
        return [c for c in self.cells if c.candidate == candidate]
