"""Evaluations as results: whole ``RunResult``s from simulated rounds, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastkernels.evaluation.coverage.result import Coverage, TaskCoverage
from fastkernels.evaluation.e2e.result import (
    ARMS,
    ArmName,
    ArmSpeed,
    Correctness,
    Machine,
    Metric,
    ModelResult,
    RoundSample,
    RunResult,
    Trial,
    WorkloadResult,
)
from fastkernels.evaluation.e2e.workload import Workload
from fastkernels.evaluation.statistics import latency_ratio, noise, percentiles, ratio
from tests.evaluation.arms import make_arm

MODELS = {"llama-8b": "llm", "qwen3-moe": "llm", "bge-m3": "embedding", "vit-base": "vision"}
DIGESTS = {"rms_norm": "3f1c" * 16, "gated_mlp": "a70b" * 16}
VERSIONS = {"python": "3.12.3", "torch": "2.11.0", "transformers": "5.17.0", "triton": "3.6.0", "fastkernels": "0.1.0"}
WORKLOADS = {
    "llm": (
        Workload(name="LLM.single_request", batch=1, requests=4, input_tokens=(128,), output_tokens=32),
        Workload(name="LLM.mixed", batch=8, requests=16, input_tokens=(64, 512), output_tokens=32),
    ),
    "embedding": (Workload(name="Embedding.fixed_batch", batch=32, requests=64, input_tokens=(256,)),),
    "vision": (Workload(name="Vision.fixed_batch", batch=16, requests=64, size=(224, 224)),),
}


def make_run(
    *,
    models: Mapping[str, str] = MODELS,
    speedup: float | Mapping[str, float] = 1.2,
    noise: float = 0.01,
    rounds: int = 12,
    correctness: float = 1.0,
    failed: Sequence[str] = (),
    crashed: Sequence[str] = (),
    seed: int = 0,
    date: str = "2026-11-20T10:00:00+00:00",
    digests: Mapping[str, str] = DIGESTS,
    candidates: str = "shipped",
    scenario: str = "default",
    device: str = "NVIDIA H200",
    versions: Mapping[str, str] = VERSIONS,
    host: str = "5e1f",
    settings: Mapping[str, str] = {"rounds": "12", "seed": "0"},
    protocol: int = 1,
) -> RunResult:
    """A run over ``models`` (name: category of WORKLOADS).

    Args:
        speedup: of the candidate, of every model or by model.
        noise: standard deviation of a block's log seconds.
        failed: models with a red gate.
        crashed: models whose candidate arm died.
    """
    rng = np.random.default_rng(seed)
    return RunResult(
        protocol=protocol,
        id=f"{scenario}-{seed:04d}-{date}",
        date=date,
        scenario=scenario,
        candidates=candidates,
        digests=dict(digests),
        machine=Machine(device=device, versions=dict(versions), host=host),
        command=f"fastkernels eval {scenario} --candidates {candidates} --seed {seed}",
        settings=dict(settings),
        models=[
            _model(
                m,
                category,
                speedup[m] if isinstance(speedup, Mapping) else speedup,
                rng,
                noise=noise,
                rounds=rounds,
                score=0.0 if m in failed else correctness,
                crashed=m in crashed,
                digests=dict(digests),
                label=candidates,
            )
            for m, category in models.items()
        ],
    )


def _model(
    name: str,
    category: str,
    gain: float,
    rng: np.random.Generator,
    *,
    noise: float,
    rounds: int,
    score: float,
    crashed: bool,
    digests: dict[str, str],
    label: str,
) -> ModelResult:
    reason = ""
    if crashed:
        reason = "candidate arm: process ended with signal 11 (SIGSEGV) in round 3; log candidate.log"
    elif score == 0:
        reason = "eager: argmax agreement 0.712, the unpatched model's is 0.994: as far as the known-bad control"
    passed = not crashed and score > 0
    slower = {"eager": 1.31, "torch.compile default": 1.08, "torch.compile reduce-overhead": 1.0}
    return ModelResult(
        model=name,
        family={"llm": "LLM", "embedding": "Embedding", "vision": "Vision"}[category],
        category=category,
        dtype="bfloat16",
        weights="config meta-llama/Llama-3.1-8B, random, seed 0" if category == "llm" else f"models/{name}",
        parameters=8_030_261_248 if category == "llm" else 109_482_240,
        baseline="torch.compile reduce-overhead",
        trials=[
            Trial(
                name=way,
                seconds={w.name: x for w in WORKLOADS[category]},
                reason="" if x == 1 else f"{x:.2f}x as long",
                chosen=x == 1,
            )
            for way, x in slower.items()
        ]
        + [Trial(name="vllm", seconds={}, reason="not installed")],
        arms={a: make_arm(a, crashed=crashed and a == "candidate", digests=digests, label=label) for a in ARMS},
        workloads=[_workload(w, gain, noise, rounds, passed, rng) for w in WORKLOADS[category]],
        correctness=[] if crashed else [_correctness(m, category, score, reason) for m in ("eager", "reduce-overhead")],
        coverage=_coverage(),
        valid=not crashed,
        passed=passed,
        reason=reason,
        seconds=311.0,
    )


def _workload(
    workload: Workload, gain: float, sigma: float, rounds: int, passed: bool, rng: np.random.Generator
) -> WorkloadResult:
    """Rounds share a drift; each arm's two visits add noise of their own."""
    factors: dict[ArmName, float] = {"baseline": 1.0, "null": 1.0, "candidate": 1.0 / gain}
    drift = rng.normal(0, sigma, rounds)
    visits = {arm: factors[arm] * np.exp(drift[:, None] + rng.normal(0, sigma, (rounds, 2))) for arm in ARMS}
    generates = workload.output_tokens > 0

    def sample(seconds: float) -> RoundSample:
        ms = 1000 * seconds * workload.batch / workload.requests
        return RoundSample(
            seconds=seconds,
            latency_ms=ms,
            ttft_ms=0.2 * ms if generates else None,
            tpot_ms=0.8 * ms / (workload.output_tokens - 1) if generates else None,
        )

    samples: list[dict[ArmName, RoundSample]] = [
        {arm: sample(float(visits[arm][i].mean())) for arm in ARMS} for i in range(rounds)
    ]
    first, second = visits["baseline"].T
    return WorkloadResult(
        workload=workload,
        unit="tokens" if generates else {"Embedding": "sentences", "Vision": "images"}[workload.family],
        arms={arm: _speed(workload, visits[arm], rng) for arm in ARMS},
        rounds=samples,
        speedup=ratio(samples, "baseline", "candidate") if passed else None,
        latency=latency_ratio(samples) if passed else None,
        null=ratio(samples, "baseline", "null") if passed else None,
        noise=noise(first, second),
    )


def _speed(workload: Workload, visits: np.ndarray, rng: np.random.Generator) -> ArmSpeed:
    seconds = float(np.median(visits.mean(1)))
    tail = np.exp(rng.normal(0, 0.02, 200) + rng.exponential(0.02, 200))
    ms = 1000 * seconds * workload.batch / workload.requests * tail
    steps = max(workload.output_tokens, 1)
    return ArmSpeed(
        units_per_s=workload.requests * steps / seconds,
        requests_per_s=workload.requests / seconds,
        latency_ms=percentiles(ms),
        ttft_ms=percentiles(0.2 * ms) if steps > 1 else None,
        tpot_ms=percentiles(0.8 * ms / (steps - 1)) if steps > 1 else None,
        latencies_ms=[round(float(x), 3) for x in ms],
        blocks=visits.size,
        rejected=1,
        joules_per_unit=0.8 * seconds,
        watts=612.0,
        celsius=58.0,
        megahertz=1980.0,
    )


def _correctness(mode: str, category: str, score: float, reason: str) -> Correctness:
    far, near = 0.09, 0.006
    distance = near + (1 - score) * (far - near)
    names = {
        "llm": ("argmax_agreement", "logit_kl"),
        "embedding": ("cosine", "ranking"),
        "vision": ("top1", "logit_cosine"),
    }
    return Correctness(
        mode=mode,
        score=score,
        passed=score > 0,
        reason=reason if score == 0 else "",
        metrics=[
            Metric(
                name=name,
                baseline=near,
                candidate=distance,
                control=far,
                score=score,
                shown={"baseline": 1 - near, "candidate": 1 - distance, "control": 1 - far},
            )
            for name in names[category]
        ],
        timed_outputs=0.997 if score > 0 else 0.41,
        oracle="fp32, eager; control: weights perturbed by 5%",
    )


def _coverage() -> Coverage:
    return Coverage(
        sites=11,
        applied=8,
        clock="device",
        share=0.62,
        tasks=[
            TaskCoverage(task="gated_mlp", sites=4, applied=4, share=0.55),
            TaskCoverage(task="rms_norm", sites=5, applied=4, share=0.07),
            TaskCoverage(task="linear", sites=1, applied=0),
            TaskCoverage(task="rotary_emb", sites=1, applied=0),
        ],
        outside={"LlamaAttention": 0.29, "Linear": 0.07, "LlamaRotaryEmbedding": 0.02},
    )
