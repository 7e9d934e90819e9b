"""The records of one entry's evaluation: a line of JSON each, appended and synced, so that a killed run keeps them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.coverage.result import Coverage
from fastkernels.evaluation.e2e.result import ArmName, ArmResult, Correctness, Trial


class Started(BaseModel):
    """The first record: what is evaluated. A journal of something else is not continued."""

    kind: Literal["started"] = "started"
    facts: dict[str, str]


class Answered(BaseModel):
    """The oracle and the control gave their answers, which lie beside the journal."""

    kind: Literal["answered"] = "answered"
    oracle: str
    parameters: int


class Tried(BaseModel):
    """The ways of an arm were timed, and one was chosen. ``passes`` of a workload fill one block."""

    kind: Literal["tried"] = "tried"
    arm: ArmName
    mode: str
    trials: list[Trial]
    passes: dict[str, int] = Field(default_factory=dict)


class Gated(BaseModel):
    """One mode's correctness; ``after`` the timed blocks, when it is judged a second time."""

    kind: Literal["gated"] = "gated"
    after: bool = False
    correctness: Correctness


class Block(BaseModel):
    """One visit of an arm to a workload. Seconds are of one pass, by the parent's clock."""

    kind: Literal["block"] = "block"
    workload: str
    round: int
    visit: int
    arm: ArmName
    passes: int
    seconds: float
    requests: int
    tokens: int
    latency_ms: list[float]
    ttft_ms: list[float] = Field(default_factory=list)
    tpot_ms: list[float] = Field(default_factory=list)
    elapsed_ms: list[float] = Field(default_factory=list, description="of each pass, where latencies overlap")
    megahertz: float | None = None
    watts: float | None = None
    celsius: float | None = None
    joules: float | None = None
    outputs: str = Field(default="", description="digest of the file with the outputs of one pass of the candidate")
    rejected: str = Field(default="", description="why the block does not count: the device throttled")

    @property
    def key(self) -> tuple[str, int, int]:
        """What there may be one accepted block of."""
        return self.workload, self.round, self.visit


class Checked(BaseModel):
    """Outputs of one timed block of the candidate, scored by the unpatched model."""

    kind: Literal["checked"] = "checked"
    workload: str
    round: int
    visit: int
    share: float
    details: str = ""


class Ended(BaseModel):
    """An arm after its last block, or what ended it."""

    kind: Literal["ended"] = "ended"
    arm: ArmName
    result: ArmResult


class Covered(BaseModel):
    """Coverage, measured in the baseline arm."""

    kind: Literal["covered"] = "covered"
    coverage: Coverage | None
    reason: str = Field(default="", description="why there is none")


Record = Annotated[Started | Answered | Tried | Gated | Block | Checked | Ended | Covered, Field(discriminator="kind")]
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


class Journal:
    """An append-only file of records.

    A last line without its end is what a killed writer left: it is cut off. Any other line that does not parse is an
    error, since it would be a lost sample.

    Raises:
        EvaluationError: a line is no record; the message names file and line.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.records: list[Record] = []
        if file.is_file():
            content = file.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.truncate(file, len(whole))
            for number, line in enumerate(whole.splitlines(), start=1):
                try:
                    self.records.append(_RECORD.validate_python(json.loads(line)))
                except (ValidationError, json.JSONDecodeError) as error:
                    raise EvaluationError(
                        f"{file}, line {number} is no record of an evaluation ({str(error).splitlines()[0]}). "
                        "Evaluate into another folder with --out, or remove the file."
                    ) from None

    def append(self, record: Record) -> None:
        """Writes one record, and returns once it is on the disk."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)

    def blocks(self) -> dict[tuple[str, int, int], Block]:
        """Accepted blocks by workload, round and visit."""
        return {r.key: r for r in self.records if isinstance(r, Block) and not r.rejected}

    def rejected(self) -> list[Block]:
        """Blocks that do not count."""
        return [r for r in self.records if isinstance(r, Block) and r.rejected]

    def tried(self, arm: ArmName) -> Tried | None:
        """What was chosen for an arm."""
        return next((r for r in self.records if isinstance(r, Tried) and r.arm == arm), None)

    def gated(self, *, after: bool = False) -> list[Correctness]:
        """Correctness before or after the timed blocks."""
        return [r.correctness for r in self.records if isinstance(r, Gated) and r.after == after]

    def failed(self) -> Ended | None:
        """The failure that ended the evaluation, if one did."""
        return next((r for r in self.records if isinstance(r, Ended) and r.result.state == "failed"), None)

    def begin(self, facts: dict[str, str]) -> None:
        """Writes the first record, or makes sure that an earlier one says the same.

        Raises:
            EvaluationError: the journal is of another evaluation.
        """
        first = next((r for r in self.records if isinstance(r, Started)), None)
        if first is None:
            self.append(Started(facts=facts))
            return
        other = sorted(k for k in facts.keys() | first.facts.keys() if facts.get(k) != first.facts.get(k))
        if other:
            differ = "; ".join(f"{k}: {first.facts.get(k)} then, {facts.get(k)} now" for k in other)
            raise EvaluationError(
                f"{self.file} holds records of another evaluation ({differ}), which cannot be continued as this one. "
                "Evaluate into another folder with --out."
            )
