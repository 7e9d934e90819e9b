"""What the host tells a worker and what comes back, as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.subject import BUCKETS
from fastkernels.evaluation.conflicts.target import Target

WORKER = "fastkernels.evaluation.conflicts.worker"  # run with python -m


class Job(BaseModel):
    """Stages of one candidate to run, each in a process of its own."""

    target: Target
    stages: list[str]
    buckets: list[int] = list(BUCKETS)
    timeout: float = Field(default=120.0, description="seconds that one stage may take")
    parallel: int = Field(default=2, description="stages at a time")
    mended: bool = Field(default=False, description="run the candidate behind an opaque operator")


class Result(BaseModel):
    """How one stage ended."""

    stage: str
    outcome: Literal["done", "skip", "crash", "hang", "load error"]
    findings: list[Finding] = Field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0
    label: str = ""
    task: str = ""
    cuda: bool = False
    device: str = "cpu"
