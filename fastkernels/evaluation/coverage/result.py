"""What coverage says: the part of a model that candidates stand for, by modules and by time."""

from __future__ import annotations

from pydantic import BaseModel, Field


class TaskCoverage(BaseModel):
    """One task: how many of its sites candidates hold, and what share of the time passes inside those."""

    task: str
    sites: int = Field(description="modules of the model that compute the task")
    applied: int
    share: float | None = Field(default=None, description="of the unpatched model's time, inside the applied sites")


class Coverage(BaseModel):
    """Time is that of the unpatched model in eager: device time on a GPU, CPU time otherwise."""

    sites: int
    applied: int
    clock: str = Field(description="device or cpu")
    share: float | None = Field(default=None, description="of the time, inside modules that candidates replace")
    tasks: list[TaskCoverage] = Field(default_factory=list)
    outside: dict[str, float] = Field(
        default_factory=dict,
        description="share of the time by module class, of what no candidate replaces, largest first",
    )
