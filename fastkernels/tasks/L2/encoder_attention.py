"""encoder_attention: self-attention over a whole sequence, without RoPE and without a cache (BERT, ViT, CLIP)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1.attention import Attention
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes


class EncoderAttention(Interface):
    """Bidirectional self-attention.

    Args:
        hidden_size: width of the input, and of the output if ``has_output``.
        num_heads, head_dim: heads of query, key and value, and their width.
        qkv_bias, o_bias: biases of the projections.
        has_output: whether there is an output projection; without, the heads are returned side by side.
        scale: of the logits; ``head_dim ** -0.5`` if None.

    ``forward(hidden_states, mask=None)``: hidden_states (B, S, hidden_size); mask as task ``attention`` takes it:
    broadcast to (B, H, S, S), bool with True = attend, or float, added to the logits. Returns (B, S, hidden_size), or
    (B, S, num_heads * head_dim) without output projection. State: ``qkv_proj.weight`` (3 * num_heads * head_dim,
    hidden_size), query rows first, and ``o_proj.weight`` (hidden_size, num_heads * head_dim), with their biases.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool = True,
        o_bias: bool = True,
        has_output: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.qkv_proj = Linear(hidden_size, 3 * num_heads * head_dim, bias=qkv_bias)
        self.attn = Attention(num_heads, head_dim, head_dim**-0.5 if scale is None else scale, causal=False)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, bias=o_bias) if has_output else None

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        qkv = self.qkv_proj(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = (t.transpose(1, 2) for t in qkv.unbind(2))
        out = self.attn(query, key, value, mask).transpose(1, 2).flatten(2)
        return out if self.o_proj is None else self.o_proj(out)


class Witness(EncoderAttention):
    """Three projections, one head after the other, the softmax in float."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        weights = self.qkv_proj.weight.chunk(3)
        biases = (None, None, None) if self.qkv_proj.bias is None else self.qkv_proj.bias.chunk(3)
        projected = [F.linear(hidden_states, w, b) for w, b in zip(weights, biases, strict=True)]
        batch, length = hidden_states.shape[:2]
        bias = torch.zeros((), device=hidden_states.device)
        if mask is not None:
            bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else mask
        bias = bias.to(hidden_states.device).expand(batch, self.num_heads, length, length)
        heads = []
        for head, (q, k, v) in enumerate(zip(*(t.split(self.head_dim, dim=-1) for t in projected), strict=True)):
            wide = torch.promote_types(q.dtype, torch.float32)
            logits = q.to(wide) @ k.to(wide).mT * self.attn.scale + bias[:, head]
            heads.append((torch.softmax(logits, dim=-1) @ v.to(wide)).to(q.dtype))
        out = torch.cat(heads, dim=-1)
        return out if self.o_proj is None else self.o_proj(out)


class IgnoresTheMask(EncoderAttention):
    """Cheat: attends to padding."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(hidden_states)


class LooksBackOnly(EncoderAttention):
    """Cheat: a decoder's kernel, causal where no mask says otherwise."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attn.causal = True


class ForgetsTheScale(EncoderAttention):
    """Cheat: logits as they come."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attn.scale = 1.0


def draw(batch: int, length: int, width: int, *, mask: str = "") -> Draw:
    """Hidden states, and a padding mask for the first of the batch: ``bool`` or ``float``."""

    def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        x = torch.randn(batch, length, width, generator=g).to(device, dtype)
        if not mask:
            return (x,)
        seen = torch.ones(batch, 1, 1, length, dtype=torch.bool)
        seen[0, ..., length // 2 :] = False
        if mask == "bool":
            return (x, seen.to(device))
        return (x, torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min).to(device))

    return arguments


def cases() -> Iterator[Case]:
    """With and without output projection, biases, masks of both kinds; one token, none; BERT-base's and ViT-L's."""
    base = {"hidden_size": 48, "num_heads": 3, "head_dim": 16}
    yield Case(name="plain", init=base, draw=draw(2, 9, 48))
    yield Case(name="no_output", init=base | {"has_output": False}, draw=draw(2, 9, 48))
    yield Case(name="bool_mask", init=base | {"has_output": False}, draw=draw(2, 9, 48, mask="bool"))
    yield Case(name="float_mask", init=base, draw=draw(2, 9, 48, mask="float"))
    yield Case(name="no_bias", init=base | {"qkv_bias": False, "o_bias": False}, draw=draw(2, 9, 48))
    yield Case(
        name="narrow_scaled", init={"hidden_size": 40, "num_heads": 3, "head_dim": 8, "scale": 0.2}, draw=draw(1, 7, 40)
    )
    yield Case(name="one_token", init=base, draw=draw(3, 1, 48))
    yield Case(name="empty", init=base, draw=draw(0, 5, 48))
    bert = {"hidden_size": 768, "num_heads": 12, "head_dim": 64, "has_output": False}
    vit = {"hidden_size": 1024, "num_heads": 16, "head_dim": 64}
    yield Case(name="bert_base_32x512", init=bert, draw=draw(32, 512, 768, mask="bool"), production=True)
    yield Case(name="vit_large_64x577", init=vit, draw=draw(64, 577, 1024), production=True)


def cost(module: EncoderAttention, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> Cost:
    """Weights, input and output cross memory once; each query meets each key twice."""
    batch, length = hidden_states.shape[:2]
    width = module.num_heads * module.head_dim
    matrices = sum(p.numel() for p in module.parameters() if p.dim() == 2)
    written = batch * length * (width if module.o_proj is None else hidden_states.shape[-1])
    return Cost(
        bytes=element_bytes(hidden_states, mask, *module.parameters()) + written * hidden_states.element_size(),
        flops=2 * batch * length * matrices + 4 * batch * length * length * width,
    )


TASK = Task(
    name="encoder_attention",
    level=2,
    family="attention",
    interface=EncoderAttention,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(IgnoresTheMask, LooksBackOnly, ForgetsTheScale),
    accuracy=CONTRACTION,
    stems=("bert_attention", "vision_attention"),
    parts=("linear", "attention"),
)
