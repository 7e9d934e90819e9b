"""Engines that tests of this folder share, and what they put into them: one start serves a module of tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastkernels
from fastkernels.patches.patch import Patch
from fastkernels.patches.site import Site
from fastkernels.tasks.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.L1.rms_norm import RMSNorm
from tests.engines.offline_vllm import Offline, offline_vllm
from tests.engines.tiny import make

Answer = list[tuple[list[int], list[float]]]
# What the adapters of this folder find; attention and whole layers have tests of their own.
TASKS = frozenset(
    {
        "rms_norm",
        "gemma_rms_norm",
        "layer_norm",
        "silu_and_mul",
        "gelu_and_mul",
        "rotary_emb",
        "linear",
        "embedding",
        "attention",
        "gated_mlp",
        "fused_experts",
        "shared_expert_moe",
    }
)


@contextmanager
def tiny_engine(name: str, folder: Path, **options: Any) -> Iterator[Offline]:
    with offline_vllm(make(folder / "models", name), folder / "cache", **options) as engine:
        yield engine


def ours(site: Site) -> bool:
    return site.task.name in TASKS


@contextmanager
def patched(engine: Offline, candidates: Any = "reference", **options: Any) -> Iterator[Patch]:
    """A patch made as a worker makes it, and taken out again."""
    from fastkernels.patches.vllm.context import call_context

    with call_context(engine.config):
        handle = fastkernels.patch(engine.model, candidates, **({"select": ours} | options))
    try:
        yield handle
    finally:
        handle.unpatch()


def found(handle: Patch) -> Counter[tuple[str, str]]:
    """How many sites of each task, by whether one may stand there."""
    sites = (s for s in handle.report.sites if s.task in TASKS)
    return Counter((s.task, "gated" if s.state == "gated" else "open") for s in sites)


def tokens(answer: Answer) -> list[list[int]]:
    return [ids for ids, _ in answer]


def drift(answer: Answer, other: Answer) -> float:
    """The largest difference between logprobs."""
    pairs = zip(answer, other, strict=True)
    return max(abs(a - b) for (_, x), (_, y) in pairs for a, b in zip(x, y, strict=True))


class WrongRMSNorm(RMSNorm):
    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        out = super().forward(x, residual)
        return out * 1.05 if isinstance(out, torch.Tensor) else (out[0] * 1.05, out[1])


class WrongGemmaRMSNorm(GemmaRMSNorm):
    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        out = super().forward(x, residual)
        return out * 1.05 if isinstance(out, torch.Tensor) else (out[0] * 1.05, out[1])


WRONG: dict[str, type[nn.Module]] = {"rms_norm": WrongRMSNorm, "gemma_rms_norm": WrongGemmaRMSNorm}


@contextmanager
def changed(owner: Any, **attributes: Any) -> Iterator[None]:
    """``owner`` with other attributes for a while: what an engine configured otherwise would have there."""
    former = {name: getattr(owner, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in former.items():
            setattr(owner, name, value)


def reasons(engine: Offline, path: str) -> dict[str, str]:
    """Why the sites at ``path`` are gated, by task."""
    with patched(engine) as handle:
        return {s.task: s.reason for s in handle.report.sites if s.path == path and s.state == "gated"}
