"""What one worker process of an engine says of itself: patched or not and why, and what stands on its model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from fastkernels.patches.report import Report


class WorkerReport(BaseModel):
    """One model in one worker process. Counts are as of the moment the report was taken."""

    engine: str = Field(description="vllm or sglang")
    version: str = Field(description="the engine's")
    pid: int
    rank: int = Field(description="among the workers of one replica of the model")
    world_size: int = Field(description="workers of one replica: tensor times pipeline parallelism")
    model: str = Field(default="target", description="target, or draft for the one that speculates")
    state: Literal["patched", "unpatched", "watching"]
    reason: str = Field(default="", description="why it is unpatched")
    candidates: str | None = Field(default=None, description="as the operator named them")
    digest: str = Field(default="", description="of all that was put in, as the engine's compile cache knows it")
    compilation: str = Field(default="", description="how the engine runs the model: eager, compiled, graphs")
    dispatchers: int = Field(default=0, description="forwards of this library that stand on the model")
    calls: int = Field(default=0, description="eager calls that they counted")
    patch: Report | None = Field(default=None, description="every site and candidate with its terminal state")

    @property
    def summary(self) -> str:
        """One line for a log.

        >>> WorkerReport(engine="vllm", version="0.30", pid=7, rank=0, world_size=1, state="watching").summary
        'vllm 0.30, rank 0 of 1, process 7: unpatched, watched'
        """
        where = f"{self.engine} {self.version}, rank {self.rank} of {self.world_size}, process {self.pid}"
        where += "" if self.model == "target" else f", {self.model} model"
        if self.state == "watching":
            return f"{where}: unpatched, watched"
        if self.state == "unpatched" or self.patch is None:
            return f"{where}: unpatched: {self.reason}"
        states = ", ".join(f"{n} {state}" for state, n in sorted(self.patch.count().items()))
        return f"{where}: patched with {self.candidates}: {states} of {len(self.patch.sites)} sites"
