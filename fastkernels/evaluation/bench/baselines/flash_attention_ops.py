"""FlashAttention as vLLM ships it: version 3 on Hopper, 2 elsewhere, over keys and values where they lie."""

from __future__ import annotations

from functools import lru_cache

import torch

from fastkernels.runtime.candidate import candidate
from fastkernels.tasks.L1.attention import Attention

HALVES = (torch.bfloat16, torch.float16)


@lru_cache(maxsize=64)
def _tables(
    batch: int, length: int, total: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What an engine prepares once a step: where queries start, how many keys each sequence has, and its page."""
    starts = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=device)
    keys = torch.full((batch,), total, dtype=torch.int32, device=device)
    return starts, keys, torch.arange(batch, dtype=torch.int32, device=device)[:, None]


@candidate("attention", devices=("cuda",), dtypes=HALVES, capability=(8, 0))
class VllmFlashAttention(Attention):
    """``flash_attn_varlen_func``, each sequence's keys one page of a paged cache; only queries of several sequences
    are copied. No mask but causality and window."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        from vllm.v1.attention.backends.fa_utils import get_flash_attn_version
        from vllm.vllm_flash_attn import flash_attn_varlen_func

        if mask is not None:
            raise NotImplementedError("flash_attn_varlen_func takes no mask")
        (batch, heads, length, width), total = query.shape, key.shape[2]
        starts, keys, pages = _tables(batch, length, total, query.device)
        window = [-1, -1] if self.sliding_window is None else [self.sliding_window - 1, 0 if self.causal else -1]
        sinks = {} if self.sinks is None else {"s_aux": self.sinks.to(torch.bfloat16)}
        out = flash_attn_varlen_func(
            query.transpose(1, 2).reshape(batch * length, heads, width),
            key.transpose(1, 2),
            value.transpose(1, 2),
            max_seqlen_q=length,
            cu_seqlens_q=starts,
            max_seqlen_k=total,
            seqused_k=keys,
            block_table=pages,
            softmax_scale=self.scale,
            causal=self.causal,
            window_size=window,
            softcap=self.logits_soft_cap or 0.0,
            fa_version=get_flash_attn_version(),
            **sinks,
        )
        return out.view(batch, length, heads, -1).transpose(1, 2)
