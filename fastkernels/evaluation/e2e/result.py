"""What an evaluation says: the schema of ``result.json``, which reports, scores and lineage read."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fastkernels.evaluation.coverage.result import Coverage
from fastkernels.evaluation.e2e.workload import Workload
from fastkernels.patches.interposition import Interposition
from fastkernels.patches.report import Report

PROTOCOL = 1  # raised when numbers of two versions of the protocol must not be compared
ArmName = Literal["baseline", "null", "candidate"]
ARMS: tuple[ArmName, ...] = ("baseline", "null", "candidate")


class Interval(BaseModel):
    """A value and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


class Percentiles(BaseModel):
    """Of a latency, in milliseconds."""

    p50: float
    p95: float
    p99: float


class RoundSample(BaseModel):
    """One arm in one round, over its accepted visits: the unit of the bootstrap."""

    seconds: float = Field(description="of one pass over the workload, mean of the visits")
    latency_ms: float = Field(description="median request latency")
    ttft_ms: float | None = None
    tpot_ms: float | None = None


class ArmSpeed(BaseModel):
    """One arm on one workload."""

    units_per_s: float = Field(description="tokens per second, or items per second: median over rounds")
    requests_per_s: float
    latency_ms: Percentiles
    ttft_ms: Percentiles | None = None
    tpot_ms: Percentiles | None = None
    latencies_ms: list[float] = Field(default_factory=list, description="raw, thinned to 400 at most, for the plots")
    blocks: int = Field(description="accepted")
    rejected: int = Field(default=0, description="blocks thrown away: the device throttled")
    joules_per_unit: float | None = None
    watts: float | None = None
    celsius: float | None = None
    megahertz: float | None = Field(default=None, description="median clock of the device's cores")


class WorkloadResult(BaseModel):
    """One workload: every arm's speed, and ratios over the baseline (above 1 is faster).

    The ratios are None on a red gate or an invalid run: no speed-up is shown then, the raw arms stay.
    """

    workload: Workload
    unit: str = Field(description="what is counted: tokens, sentences, images, ...")
    arms: dict[ArmName, ArmSpeed]
    rounds: list[dict[ArmName, RoundSample]] = Field(description="complete rounds only")
    speedup: Interval | None = Field(default=None, description="throughput of the candidate over the baseline")
    latency: Interval | None = Field(
        default=None, description="latency of the baseline over the candidate's: TTFT and TPOT, geometric, or request"
    )
    null: Interval | None = Field(default=None, description="null arm over baseline: what the machinery costs")
    noise: Interval | None = Field(default=None, description="baseline over itself, first visits over second visits")


class Metric(BaseModel):
    """One correctness metric. Distances: 0 is equal to the oracle."""

    name: str
    baseline: float = Field(description="distance of the unpatched production run to the oracle")
    candidate: float
    control: float = Field(description="distance of the known-bad control")
    score: float | None = Field(description="calibrated to [0, 1]; None where the control is no worse than production")
    shown: dict[str, float] = Field(description="as the field writes it, by baseline, candidate and control")


class Correctness(BaseModel):
    """The gate. ``score`` is C: the least of the calibrated metrics, 0 where something failed."""

    mode: str = Field(description="eager or the mode of torch.compile that was judged")
    score: float
    passed: bool
    reason: str = ""
    metrics: list[Metric] = Field(default_factory=list)
    timed_outputs: float | None = Field(
        default=None, description="share of the outputs of timed calls that the unpatched model would have given too"
    )
    oracle: str = Field(description="what the oracle and the control were")


class Trial(BaseModel):
    """A way to run the unpatched model that was timed to find the strongest."""

    name: str = Field(description="eager, torch.compile default, torch.compile reduce-overhead, vllm")
    seconds: dict[str, float] = Field(description="of one pass, by workload; empty where it failed")
    reason: str = Field(default="", description="why it is not the baseline")
    chosen: bool = False


class ArmResult(BaseModel):
    """One arm's process."""

    state: Literal["finished", "failed"]
    reason: str = Field(default="", description="of a failure: the error, a crash's signal, or a hang's limit")
    log: str = Field(default="", description="file name of its log, beside the result")
    log_tail: str = ""
    mode: str = ""
    patch: Report | None = None
    interposition: Interposition | None = Field(default=None, description="what a window of real calls showed")
    dispatchers: int | None = Field(default=None, description="patched modules in the arm; 0 in the baseline")
    dispatcher_calls: int | None = None
    peak_memory_bytes: int | None = None
    launches_per_step: float | None = None
    load_seconds: float | None = None
    patch_seconds: float | None = None
    warmup_seconds: float | None = None


class ModelResult(BaseModel):
    """One entry of the scenario, judged. ``valid`` and ``passed`` or the score is 0, with ``reason``."""

    model_config = ConfigDict(protected_namespaces=())

    model: str
    family: str
    category: str
    dtype: str
    tp: int = 1
    weights: str = Field(description="where the weights came from: a path, or a config with a seed")
    parameters: int | None = None
    baseline: str = Field(default="", description="name of the strongest unpatched way, which the baseline arm is")
    trials: list[Trial] = Field(default_factory=list)
    arms: dict[ArmName, ArmResult] = Field(default_factory=dict)
    workloads: list[WorkloadResult] = Field(default_factory=list)
    correctness: list[Correctness] = Field(default_factory=list, description="one for each mode")
    coverage: Coverage | None = None
    valid: bool = Field(description="every arm finished, interposition proven, nothing patched in the baseline")
    passed: bool = Field(description="valid, and every gate is green")
    reason: str = ""
    seconds: float = 0.0

    @property
    def score(self) -> float:
        """C of the model: the least over its gates, 0 where it did not pass."""
        return min((c.score for c in self.correctness), default=0.0) if self.passed else 0.0


class Machine(BaseModel):
    """Where a run was made: runs with different ones are not merged unasked."""

    device: str = Field(description="the accelerator's name, or the CPU's with the number of threads")
    count: int = 1
    versions: dict[str, str]
    host: str = Field(default="", description="hash of the host's name, to tell machines apart")


class RunResult(BaseModel):
    """One ``fastkernels eval``."""

    protocol: int = PROTOCOL
    id: str
    date: str = Field(description="ISO 8601, UTC, of the start")
    scenario: str
    candidates: str = Field(description="as given: shipped, a folder")
    digests: dict[str, str] = Field(description="content hash of each candidate, by task")
    machine: Machine
    command: str = Field(description="the command that reproduces the run")
    settings: dict[str, str] = Field(default_factory=dict)
    models: list[ModelResult]
