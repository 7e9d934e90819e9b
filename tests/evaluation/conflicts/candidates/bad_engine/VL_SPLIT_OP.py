"""Takes the number of real tokens from vLLM's forward context, and vLLM is not told to split its graphs there."""

import sys

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.attention import Attention


def tokens(rows):
    """Rows to compute: all of them outside vLLM; none in a run without metadata, which only measures memory."""
    vllm = sys.modules.get("vllm.forward_context")
    if vllm is None or not vllm.is_forward_context_available():
        return rows
    metadata = vllm.get_forward_context().attn_metadata
    return 0 if metadata is None else metadata["model.layers.0.self_attn"].num_actual_tokens


@custom_op("bad_vl_split_op::attention", mutates_args=())
def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, causal: bool) -> torch.Tensor:
    out = query.new_zeros((*query.shape[:-1], value.shape[-1]))
    n, length, total = tokens(query.shape[0]), query.shape[2], key.shape[2]
    seen = torch.ones(length, total, dtype=torch.bool, device=query.device)
    if causal:
        seen = seen.tril(total - length)
    out[:n] = torch.nn.functional.scaled_dot_product_attention(
        query[:n], key[:n], value[:n], attn_mask=seen, scale=scale, enable_gqa=True
    )
    return out


@attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, causal: bool) -> torch.Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def plain(facts):
    extras = [name for name in ("logits_soft_cap", "has_sinks", "sliding_window") if facts[name]]
    return f"no {extras[0]}" if extras else None


@fastkernels.candidate("attention", facts=plain)
class OpAttention(Attention):
    def forward(self, query, key, value):
        return attention(query, key, value, self.scale, self.causal)
