"""Arms as results: patch reports and interposition, for the simulated runs of ``runs.py``."""

from __future__ import annotations

from fastkernels.evaluation.e2e.result import ArmName, ArmResult
from fastkernels.patches.interposition import Evidence, Interposition
from fastkernels.patches.report import CandidateReport, Report, SiteReport, UnrecognisedReport


def make_arm(arm: ArmName, *, crashed: bool, digests: dict[str, str], label: str) -> ArmResult:
    if crashed:
        return ArmResult(
            state="failed",
            reason="process ended with signal 11 (SIGSEGV)",
            log="candidate.log",
            log_tail='Fatal Python error: Segmentation fault\n  File "L1/rms_norm.py", line 41 in forward',
        )
    patched = arm != "baseline"
    return ArmResult(
        state="finished",
        log=f"{arm}.log",
        mode="reduce-overhead",
        patch=_report(arm, digests, label) if patched else None,
        interposition=_interposition(digests, label) if patched else None,
        dispatchers=64 if patched else 0,
        dispatcher_calls=8192 if patched else 0,
        peak_memory_bytes=17_179_869_184 + (1 << 20) * patched,
        launches_per_step=411.0 if arm == "candidate" else 552.0,
        load_seconds=6.2,
        patch_seconds=1.9 if patched else None,
        warmup_seconds=48.0,
    )


def _report(arm: ArmName, digests: dict[str, str], label: str) -> Report:
    of = "identity" if arm == "null" else label
    sites = [
        SiteReport(
            path=f"model.layers.{i}.{path}",
            cls=cls,
            task=task,
            level=level,
            state="applied",
            candidate=f"{of}/L{level}/{task}.py",
            evidence="class",
            probe="0",
            calls=256,
            lowering="inline",
        )
        for i in range(4)
        for path, cls, task, level in (
            ("input_layernorm", "LlamaRMSNorm", "rms_norm", 1),
            ("mlp", "LlamaMLP", "gated_mlp", 2),
        )
        if task in digests
    ]
    for i in range(4):
        outer = f"model.layers.{i}.mlp"
        sites.append(
            SiteReport(
                path=f"{outer}.act_fn",
                cls="SiLU",
                task="silu",
                level=1,
                state="shadowed",
                inside=outer,
                reason="inside gated_mlp",
            )
        )
    sites += [
        SiteReport(path=path, cls=cls, task=task, level=1, state=state, reason=reason)
        for path, cls, task, state, reason in (
            ("model.norm", "LlamaRMSNorm", "rms_norm", "gated", "not bfloat16"),
            ("lm_head", "Linear", "linear", "unmatched", "no candidate"),
            ("model.rotary_emb", "LlamaRotaryEmbedding", "rotary_emb", "refused", "opcheck failed"),
        )
    ]
    return Report(
        model="LlamaForCausalLM",
        mode="inference",
        dry_run=False,
        sites=sites,
        candidates=[
            CandidateReport(task=t, label=f"{of}/{t}.py", digest=d, state="applied", sites=4, calls=1024)
            for t, d in digests.items()
        ],
        unrecognised=[
            UnrecognisedReport(path="model.layers.0.extra", cls="MyNorm", task="rms_norm", reason="probe mismatch: 0.3")
        ],
        seconds=1.9,
    )


def _interposition(digests: dict[str, str], label: str) -> Interposition:
    return Interposition(
        model="LlamaForCausalLM",
        pid=4242,
        tasks={
            task: Evidence(
                candidate=f"{label}/{task}.py",
                state="applied",
                sites=[f"model.layers.{i}" for i in range(4)],
                kernels={f"_{task}_kernel": 128},
                proven=True,
                how="kernel",
            )
            for task in digests
        },
    )
