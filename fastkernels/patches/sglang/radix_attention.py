"""SGLang's attention layer, recognised and left alone: keys and values live in the engine's pages."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.running import layer_class
from fastkernels.patches.site import Proposal, one_tensor

PAGES = (
    "keys and values are in the engine's paged cache, which its attention backend reads and writes; the task takes "
    "them whole. SGLang takes another backend by --attention-backend"
)


def radix_attention(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Gated, so that the report says why an ``attention`` candidate does not run."""
    if layer_class(module) != "RadixAttention":
        return
    window, cap = module.sliding_window_size, module.logit_cap
    yield Proposal(
        task="attention",
        facts={
            "num_heads": module.tp_q_head_num,
            "head_size": module.qk_head_dim,
            "scale": module.scaling,
            "num_kv_heads": module.tp_k_head_num,
            "sliding_window": window if window > 0 else None,
            "logits_soft_cap": cap or None,
        },
        state={},
        enter=one_tensor,
        scenarios=lambda draw: iter(()),
        evidence="class",
        gated=PAGES,
    )
