"""What a profile says: each kernel's time and metrics for one call, and the call's place under the roofline."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Tool = Literal["ncu", "nsys", "torch"]


class KernelProfile(BaseModel):
    """One kernel (on a CPU, one operator), over the calls that were profiled."""

    name: str
    launches: float = Field(description="for one call of forward")
    seconds: float = Field(description="for one call of forward, all its launches")
    metrics: dict[str, float] = Field(default_factory=dict, description="mean over launches, by the names in METRICS")


class ProfileResult(BaseModel):
    """One candidate, one case, one tool."""

    tool: Tool
    task: str
    candidate: str
    case: str
    dtype: str
    device: str
    command: list[str] = Field(description="what was run; empty where the profiler runs inside")
    calls: int = Field(description="of forward, in the profiled window")
    kernels: list[KernelProfile] = Field(description="the candidate's own, slowest first")
    others: int = Field(default=0, description="kernels of the window that are not the candidate's, by name")
    bytes: int = Field(description="least that a call must move")
    flops: int = Field(description="least operations of a call")
    roofline_share: float | None = Field(default=None, description="the least time over that of all kernels shown")
    notes: list[str] = Field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of one call, in the kernels shown."""
        return sum(k.seconds for k in self.kernels)
