"""What an arm's process is told first."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from fastkernels.evaluation.e2e.scenario import Entry
from fastkernels.runtime.candidate import Lowering

Role = Literal["reference", "baseline", "null", "candidate"]


class Setup(BaseModel):
    """What an arm is: a model, and what is put into it."""

    role: Role
    entry: Entry
    device: str
    threads: int
    candidates: str = ""
    select: tuple[str, ...] = ()
    lowering: Lowering = "auto"
    verify: bool = True
    standing: tuple[tuple[str, str], ...] = ()  # of the null arm: path and task of the candidate's dispatchers
    model: str = ""  # of an engine's arm: the folder or hub id that it loads
