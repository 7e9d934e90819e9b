"""What MacroEval says: speed S, correctness C and coverage Cov, by model, by category and overall."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from fastkernels.evaluation.e2e.result import Interval


class ModelScore(BaseModel):
    """One model. Speeds are over the strongest unpatched run, above 1 is faster; None where the model failed."""

    model_config = ConfigDict(protected_namespaces=())

    model: str = Field(description="its name; with dtype and tp where the run holds several of that name")
    category: str
    passed: bool
    speed: Interval | None = Field(default=None, description="thru^0.5 x lat^0.5")
    thru: Interval | None = Field(default=None, description="throughput ratio, geometric mean over the workloads")
    lat: Interval | None = Field(default=None, description="latency ratio, geometric mean over the workloads")
    C: float = Field(description="calibrated correctness; 0 where it failed")
    reason: str = Field(default="", description="why it failed")


class CategoryScore(BaseModel):
    """One category of models."""

    category: str
    S: Interval = Field(description="speed, geometric mean over the models that passed; 0 where none did")
    C: float = Field(description="arithmetic mean over all models, failed ones as 0")
    Cov: float = Field(description="share of the models that passed")
    models: int
    passed: int


class Score(BaseModel):
    """S is geometric over the categories, C and Cov are arithmetic; a category without a pass makes S and score 0."""

    candidates: str
    digest: str = Field(description="of the candidate set, 12 hexadecimal digits")
    scenario: str
    device: str
    score: Interval = Field(description="S x C x Cov")
    S: Interval
    S_passed: Interval | None = Field(
        default=None, description="S over the categories in which a model passed; shown beside S, never scored"
    )
    C: float
    Cov: float
    noise: float = Field(description="mean over the workloads of how far the unpatched run was from itself, |A/A - 1|")
    categories: list[CategoryScore]
    models: list[ModelScore]
    notes: list[str] = Field(default_factory=list, description="what was merged, and what was merged by force")

    def text(self) -> str:
        """The score in plain lines: overall, then a line for each category and each model."""
        lines = [
            f"{self.candidates} ({self.digest}) on {self.device}, scenario {self.scenario}",
            f"score {shown(self.score)} = S {shown(self.S)} x C {self.C:.3f} x Cov {self.Cov:.3f}"
            f"; S over passed {shown(self.S_passed)}; A/A noise {self.noise:.1%}",
        ]
        for c in self.categories:
            lines.append(f"{c.category}: S {shown(c.S)}, C {c.C:.3f}, Cov {c.Cov:.3f} ({c.passed} of {c.models})")
            for m in self.models:
                if m.category == c.category:
                    ended = f"thru {shown(m.thru)}, lat {shown(m.lat)}" if m.passed else f"failed: {m.reason}"
                    lines.append(f"  {m.model}: speed {shown(m.speed)}, C {m.C:.3f}, {ended}")
        return "\n".join([*lines, *self.notes])


def shown(interval: Interval | None) -> str:
    """A value with its interval, or a dash.

    >>> shown(Interval(value=1.2, low=1.185, high=1.21)), shown(None)
    ('1.200 [1.185, 1.210]', '-')
    """
    return "-" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
