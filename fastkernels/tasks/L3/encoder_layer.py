"""encoder_layer: bidirectional attention, MLP, and a layer norm after each (BERT) or before each (ViT, CLIP)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1.layer_norm import LayerNorm
from fastkernels.tasks.L2 import encoder_attention
from fastkernels.tasks.L2 import mlp as mlp_task
from fastkernels.tasks.L2.encoder_attention import EncoderAttention, draw
from fastkernels.tasks.L2.mlp import MLP
from fastkernels.tasks.task import Case, Cost, Task

WIRINGS = ("post", "pre")


class EncoderLayer(Interface):
    """An encoder layer.

    Args:
        hidden_size: width of input and output.
        num_heads, head_dim, qkv_bias, o_bias, scale: as task ``encoder_attention``.
        intermediate_size, hidden_act, mlp_bias: as task ``mlp``.
        wiring: ``post``: ``x = norm1(x + attention(x)); norm2(x + mlp(x))``; ``pre``: ``x = x + attention(norm1(x));
            x + mlp(norm2(x))``.
        eps: of both norms.

    ``forward(hidden_states, mask=None)`` as task ``encoder_attention``; returns (B, S, hidden_size). State: that of
    ``self_attn``, ``norm1``, ``mlp`` and ``norm2`` under those names.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        intermediate_size: int,
        *,
        hidden_act: str = "gelu",
        wiring: str = "post",
        eps: float = 1e-12,
        qkv_bias: bool = True,
        o_bias: bool = True,
        mlp_bias: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if wiring not in WIRINGS:
            raise ValueError(f"encoder_layer: wiring {wiring!r} is not one of {WIRINGS}")
        self.wiring = wiring
        self.self_attn = EncoderAttention(
            hidden_size, num_heads, head_dim, qkv_bias=qkv_bias, o_bias=o_bias, scale=scale
        )
        self.norm1 = LayerNorm(hidden_size, eps)
        self.mlp = MLP(hidden_size, intermediate_size, hidden_act, bias=mlp_bias)
        self.norm2 = LayerNorm(hidden_size, eps)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = hidden_states
        if self.wiring == "post":
            x = self.norm1(x + self.self_attn(x, mask))
            return self.norm2(x + self.mlp(x))
        x = x + self.self_attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Witness(EncoderLayer):
    """Each norm through torch's own, the sum in the other order."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        def normed(norm: LayerNorm, x: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)

        x = hidden_states
        if self.wiring == "post":
            x = normed(self.norm1, torch.add(self.self_attn(x, mask), x))
            return normed(self.norm2, torch.add(self.mlp(x), x))
        x = torch.add(self.self_attn(normed(self.norm1, x), mask), x)
        return torch.add(self.mlp(normed(self.norm2, x)), x)


class OtherWiring(EncoderLayer):
    """Cheat: norms where the other family has them."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        self.wiring = "pre" if self.wiring == "post" else "post"
        try:
            return super().forward(hidden_states, mask)
        finally:
            self.wiring = "pre" if self.wiring == "post" else "post"


class SkipsTheMlp(EncoderLayer):
    """Cheat: attention only."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.wiring == "post":
            return self.norm2(self.norm1(hidden_states + self.self_attn(hidden_states, mask)))
        return hidden_states + self.self_attn(self.norm1(hidden_states), mask)


class DropsTheResidual(EncoderLayer):
    """Cheat: adds nothing to what the MLP returns."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.wiring == "post":
            x = self.norm1(hidden_states + self.self_attn(hidden_states, mask))
            return self.norm2(self.mlp(x))
        x = hidden_states + self.self_attn(self.norm1(hidden_states), mask)
        return self.mlp(self.norm2(x))


def cases() -> Iterator[Case]:
    """Both wirings, masks of both kinds, no biases, another activation; one token; BERT-base's and ViT-L's sizes."""
    base = {"hidden_size": 48, "num_heads": 3, "head_dim": 16, "intermediate_size": 80}
    yield Case(name="post", init=base, draw=draw(2, 9, 48))
    yield Case(name="pre", init=base | {"wiring": "pre", "eps": 1e-6}, draw=draw(2, 9, 48))
    yield Case(name="post_bool_mask", init=base, draw=draw(2, 9, 48, mask="bool"))
    yield Case(name="pre_float_mask", init=base | {"wiring": "pre"}, draw=draw(2, 9, 48, mask="float"))
    bare = {"qkv_bias": False, "o_bias": False, "mlp_bias": False, "scale": 0.2, "hidden_act": "quick_gelu"}
    yield Case(name="no_bias", init=base | bare, draw=draw(1, 7, 48))
    yield Case(name="one_token", init=base, draw=draw(3, 1, 48))
    bert = {"hidden_size": 768, "num_heads": 12, "head_dim": 64, "intermediate_size": 3072}
    vit = {"hidden_size": 1024, "num_heads": 16, "head_dim": 64, "intermediate_size": 4096, "wiring": "pre"}
    yield Case(name="bert_base_32x512", init=bert, draw=draw(32, 512, 768, mask="bool"), production=True)
    yield Case(name="vit_large_64x577", init=vit, draw=draw(64, 577, 1024), production=True)


def cost(module: EncoderLayer, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> Cost:
    """The attention's and the MLP's, with the stream between them kept; the norms' weights besides."""
    attention = encoder_attention.cost(module.self_attn, hidden_states, mask)
    feed_forward = mlp_task.cost(module.mlp, hidden_states)
    stream = 2 * hidden_states.numel() * hidden_states.element_size()
    norms = sum(p.numel() * p.element_size() for n in (module.norm1, module.norm2) for p in n.parameters())
    return Cost(bytes=attention.bytes + feed_forward.bytes - stream + norms, flops=attention.flops + feed_forward.flops)


TASK = Task(
    name="encoder_layer",
    level=3,
    family="layer",
    interface=EncoderLayer,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(OtherWiring, SkipsTheMlp, DropsTheResidual),
    accuracy=CONTRACTION,
    stems=("bert_layer", "vision_encoder_layer"),
    parts=("encoder_attention", "mlp", "layer_norm"),
)
