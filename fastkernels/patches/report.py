"""What a patch did and did not do: one terminal state for every site and every candidate."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import BaseModel, Field

State = Literal["applied", "gated", "shadowed", "unmatched", "refused"]


class SiteReport(BaseModel):
    """One site: what computes its task now, and why."""

    path: str = Field(description="module path in the model; empty for the model itself")
    cls: str = Field(description="class name of the live module")
    task: str
    level: int
    state: State
    candidate: str | None = Field(default=None, description="file or class of the candidate at this site")
    reason: str = ""
    inside: str | None = Field(default=None, description="path of the outer site whose implementation holds this one")
    evidence: str = Field(default="", description="class, fingerprint or schema: how the module came to be probed")
    probe: str = Field(default="", description="relative distance of the original from the task's reference")
    calls: int = Field(default=0, description="calls that ran the candidate so far")
    lowering: Literal["inline", "opaque", "transparent", "original"] | None = Field(
        default=None, description="what a compiled graph holds: the candidate's code, its operator, or the original"
    )
    lowering_reason: str = ""
    lowering_inside: dict[str, str] = Field(
        default_factory=dict, description="of the candidates inside this one, by path: the same, and why"
    )
    bypassed: dict[str, int] = Field(default_factory=dict, description="calls that ran the original, by reason")


class CandidateReport(BaseModel):
    """One candidate: where it ended."""

    task: str
    label: str
    digest: str = Field(description="content hash of the candidate's file")
    state: State
    reason: str = ""
    sites: int = Field(default=0, description="sites at which it is applied, inside outer implementations included")
    calls: int = Field(default=0, description="calls that ran it so far, at its sites and inside others")


class UnrecognisedReport(BaseModel):
    """A module that only looks like a task."""

    path: str
    cls: str
    task: str
    reason: str


class Report(BaseModel):
    """The whole of a plan or patch. Call counts are as of the moment the report was taken."""

    model: str
    mode: str
    dry_run: bool
    sites: list[SiteReport]
    candidates: list[CandidateReport]
    unrecognised: list[UnrecognisedReport]
    seconds: float = Field(description="wall-clock seconds that recognising and patching took")

    @property
    def applied(self) -> list[SiteReport]:
        """Sites at which a candidate is in effect."""
        return [s for s in self.sites if s.state == "applied"]

    def count(self) -> Counter[str]:
        """Number of sites by state."""
        return Counter(s.state for s in self.sites)

    def why_nothing(self) -> str:
        """The reasons, most frequent first, for an error message."""
        reasons = Counter(
            f"{s.task}: {s.state} ({s.reason})" for s in self.sites if s.state in ("gated", "refused") and s.reason
        )
        lines = [f"{n} x {why}" for why, n in reasons.most_common(5)]
        lines += [f"candidate {c.label} for {c.task}: {c.state} {c.reason}".rstrip() for c in self.candidates[:8]]
        lines += [f"{u.path} ({u.cls}): {u.task}, {u.reason}" for u in self.unrecognised[:5]]
        return "\n  ".join(lines)
