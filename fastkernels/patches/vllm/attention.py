"""vLLM's attention layers, which are only reported: keys and values lie in the engine's paged cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Proposal
from fastkernels.patches.vllm.engine import gated, is_a

CLASSES = (
    "vllm.model_executor.layers.attention.attention:Attention",
    "vllm.model_executor.layers.attention.mla_attention:MLAAttention",
    "vllm.attention.layer:Attention",
)


def attention(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Decoder and latent attention."""
    if is_a(module, *CLASSES):
        yield gated("attention", "paged attention: the engine's backend computes it with its KV cache; no task here")
