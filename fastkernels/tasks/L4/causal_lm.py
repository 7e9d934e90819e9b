"""causal_lm: token ids to logits, through the embedding, a stack of decoder layers, a last norm and the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1.embedding import VocabParallelEmbedding
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L3 import decoder_layer
from fastkernels.tasks.L3.decoder_layer import NORMS, LlamaDecoderLayer
from fastkernels.tasks.task import Case, Cost, Draw, Task

Tables = torch.Tensor | tuple[torch.Tensor | None, ...] | None
LayerUpdate = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class LlamaModel(nn.Module):
    """The stack between ids and head, under the state names of production's ``LlamaModel``."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        layers: Sequence[Mapping[str, Any]],
        kinds: Sequence[int],
        norm: Mapping[str, Any],
        norm_task: str,
    ) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList(LlamaDecoderLayer(**layers[kind]) for kind in kinds)
        self.norm = NORMS[norm_task](**norm)


class LlamaForCausalLM(Interface):
    """A decoder-only language model; state names as in vLLM's and transformers' ``LlamaForCausalLM``.

    Args:
        vocab_size: rows of the embedding and of the head.
        layers: constructor facts of task ``decoder_layer``, one mapping a kind of layer.
        kinds: the kind of each layer, an index into ``layers``; its length is the number of layers.
        norm: constructor facts of the last norm, of task ``norm_task``.
        embed_scale: what embeddings are multiplied with (Granite, Gemma).
        embed_scale_rounded: the scale is rounded to the dtype of the embeddings first (Gemma).
        logits_scale: what logits are multiplied with (Cohere, Granite).
        logits_soft_cap: logits become ``cap * tanh(logits / cap)`` (Gemma 2).
        head_bias: whether the head has a bias.

    ``forward(input_ids, cos, sin, mask=None, update=None, keep=0)``: input_ids (B, S) int64; cos, sin and mask as task
    ``decoder_layer``, or tuples with one for each kind of layer; ``update(layer, key, value)`` appends to a cache;
    ``keep`` is how many of the last positions get logits, 0 for all, or an index of positions. Returns (B, K,
    vocab_size).

    State: ``model.embed_tokens.weight``, each layer's under ``model.layers.{i}``, ``model.norm.*``,
    ``lm_head.weight``, ``lm_head.bias``.
    """

    def __init__(
        self,
        vocab_size: int,
        layers: Sequence[Mapping[str, Any]],
        kinds: Sequence[int],
        norm: Mapping[str, Any],
        *,
        norm_task: str = "rms_norm",
        embed_scale: float | None = None,
        embed_scale_rounded: bool = False,
        logits_scale: float | None = None,
        logits_soft_cap: float | None = None,
        head_bias: bool = False,
    ) -> None:
        super().__init__()
        hidden_size = layers[0]["attention"]["hidden_size"]
        self.kinds = tuple(kinds)
        self.embed_scale, self.embed_scale_rounded = embed_scale, embed_scale_rounded
        self.logits_scale, self.logits_soft_cap = logits_scale, logits_soft_cap
        self.model = LlamaModel(vocab_size, hidden_size, layers, self.kinds, norm, norm_task)
        self.lm_head = Linear(hidden_size, vocab_size, bias=head_bias)

    def forward(
        self,
        input_ids: torch.Tensor,
        cos: Tables = None,
        sin: Tables = None,
        mask: Tables = None,
        update: LayerUpdate | None = None,
        keep: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        return self.logits(self.hidden(input_ids, cos, sin, mask, update), keep)

    def hidden(
        self, input_ids: torch.Tensor, cos: Tables, sin: Tables, mask: Tables, update: LayerUpdate | None
    ) -> torch.Tensor:
        """The stream after the last norm, (B, S, hidden_size)."""
        x = self.model.embed_tokens(input_ids)
        if self.embed_scale is not None:
            x = x * (rounded(self.embed_scale, x.dtype) if self.embed_scale_rounded else self.embed_scale)
        calls = [tuple(of_kind(t, kind) for t in (cos, sin, mask)) for kind in range(max(self.kinds) + 1)]
        for i, (kind, layer) in enumerate(zip(self.kinds, self.model.layers, strict=True)):
            x = layer(x, *calls[kind], None if update is None else partial(update, i))
        return self.model.norm(x)

    def logits(self, x: torch.Tensor, keep: int | torch.Tensor = 0) -> torch.Tensor:
        """Logits of the positions that ``keep`` names."""
        out = self.lm_head(x[:, slice(-keep, None) if isinstance(keep, int) else keep, :])
        if self.logits_scale is not None:
            out = out * self.logits_scale
        if self.logits_soft_cap is not None:
            out = torch.tanh(out / self.logits_soft_cap) * self.logits_soft_cap
        return out


@cache
def rounded(value: float, dtype: torch.dtype) -> float:
    """The nearest number that ``dtype`` can hold.

    >>> rounded(55.4256, torch.bfloat16)
    55.5
    """
    return torch.tensor(value, dtype=dtype).item()


def of_kind(value: Tables, kind: int) -> torch.Tensor | None:
    """What a kind of layer gets of an argument that may be one for all."""
    return value[kind] if isinstance(value, tuple) else value


class Witness(LlamaForCausalLM):
    """Position by position against caches of its own, as a decoder without prefill would; only without a mask."""

    def forward(
        self,
        input_ids: torch.Tensor,
        cos: Tables = None,
        sin: Tables = None,
        mask: Tables = None,
        update: LayerUpdate | None = None,
        keep: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        if mask is not None or update is not None:
            return super().forward(input_ids, cos, sin, mask, update, keep)
        cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def append(layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if layer in cache:
                key, value = (torch.cat(pair, dim=2) for pair in zip(cache[layer], (key, value), strict=True))
            cache[layer] = key, value
            return key, value

        def at(table: Tables, i: int) -> Tables:
            if isinstance(table, tuple):
                return tuple(None if t is None else t[:, i : i + 1] for t in table)
            return None if table is None else table[:, i : i + 1]

        steps = [
            self.hidden(input_ids[:, i : i + 1], at(cos, i), at(sin, i), None, append)
            for i in range(input_ids.shape[1])
        ]
        return self.logits(torch.cat(steps, dim=1), keep)


class SkipsTheLastLayer(LlamaForCausalLM):
    """Cheat: leaves early."""

    def hidden(
        self, input_ids: torch.Tensor, cos: Tables, sin: Tables, mask: Tables, update: LayerUpdate | None
    ) -> torch.Tensor:
        kinds, layers = self.kinds, self.model.layers
        try:
            self.kinds, self.model.layers = kinds[:-1], layers[:-1]
            return super().hidden(input_ids, cos, sin, mask, update)
        finally:
            self.kinds, self.model.layers = kinds, layers


class RepeatsTheLastPosition(LlamaForCausalLM):
    """Cheat: computes the head for one position and shows it for all."""

    def logits(self, x: torch.Tensor, keep: int | torch.Tensor = 0) -> torch.Tensor:
        out = super().logits(x, keep)
        return super().logits(x[:, -1:]).expand_as(out).clone()


def cases() -> Iterator[Case]:
    """One kind of layer and two, scales and caps, padding, the last position only; two layers of Llama-3.1-8B."""
    small = {
        "attention": {"hidden_size": 48, "num_heads": 6, "num_kv_heads": 2, "head_dim": 16},
        "mlp": {"hidden_size": 48, "intermediate_size": 80},
        "norm": {"hidden_size": 48, "eps": 1e-5},
    }
    base: dict[str, Any] = {"vocab_size": 97, "layers": (small,), "kinds": (0, 0, 0), "norm": small["norm"]}
    without_rope = small | {"attention": small["attention"] | {"rotary_dim": 0}}
    yield Case(name="llama", init=base, draw=draw(2, 9, 97, 16))
    yield Case(name="one_token", init=base, draw=draw(3, 1, 97, 16))
    yield Case(name="last_position", init=base, draw=draw(2, 7, 97, 16, keep=1))
    yield Case(name="padded", init=base, draw=draw(2, 6, 97, 16, padded=True))
    scaled = {"embed_scale": 12.0, "logits_scale": 0.25, "logits_soft_cap": 3.0, "head_bias": True}
    yield Case(name="scaled", init=base | scaled, draw=draw(2, 6, 97, 16))
    gemma = small | {"norm_task": "gemma_rms_norm", "wiring": "sandwich"}
    yield Case(
        name="sandwich", init=base | {"layers": (gemma,), "norm_task": "gemma_rms_norm"}, draw=draw(2, 6, 97, 16)
    )
    two = base | {"layers": (small, without_rope), "kinds": (0, 1, 0)}
    yield Case(name="two_kinds", init=two, draw=draw(2, 6, 97, 16, kinds=2))
    llama = {
        "attention": {"hidden_size": 4096, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128},
        "mlp": {"hidden_size": 4096, "intermediate_size": 14336},
        "norm": {"hidden_size": 4096, "eps": 1e-5},
    }
    large = {"vocab_size": 128256, "layers": (llama,), "kinds": (0, 0), "norm": llama["norm"]}
    yield Case(name="llama_1x2048", init=large, draw=draw(1, 2048, 128256, 128, keep=1), production=True)


def draw(
    batch: int, length: int, vocab: int, rotary: int, *, keep: int = 0, kinds: int = 1, padded: bool = False
) -> Draw:
    """Ids, one RoPE table for all kinds of layers or one each, and a mask where the first row is padded."""

    def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[object, ...]:
        ids = torch.randint(vocab, (batch, length), generator=g).to(device)
        angles = torch.rand(1, length, rotary // 2, generator=g) * 6.0
        cos, sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)
        if kinds > 1:
            return (ids, (cos, *(None,) * (kinds - 1)), (sin, *(None,) * (kinds - 1)), None, None, keep)
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None].repeat(batch, 1, 1, 1)
        mask[0, :, 1:, 0] = False  # the first token of the first row is padding
        return (ids, cos, sin, mask.to(device) if padded else None, None, keep)

    return arguments


def cost(
    module: LlamaForCausalLM,
    input_ids: torch.Tensor,
    cos: Tables = None,
    sin: Tables = None,
    mask: Tables = None,
    update: LayerUpdate | None = None,
    keep: int | torch.Tensor = 0,
) -> Cost:
    """The layers' one after the other, the rows of the embedding that are read, and the head for the kept positions."""
    head = module.lm_head.weight
    batch, length = input_ids.shape
    stream = head.new_empty(batch, length, head.shape[1], device="meta")
    each = [decoder_layer.cost(layer, stream) for layer in module.model.layers]  # type: ignore[arg-type] # ours
    kept = batch * (keep or length if isinstance(keep, int) else keep.numel())
    moved = (head.numel() + kept * head.shape[0] + stream.numel()) * head.element_size()
    return Cost(bytes=sum(c.bytes for c in each) + moved, flops=sum(c.flops for c in each) + 2 * kept * head.numel())


TASK = Task(
    name="causal_lm",
    level=4,
    family="model",
    interface=LlamaForCausalLM,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(SkipsTheLastLayer, RepeatsTheLastPosition),
    accuracy=CONTRACTION,
    stems=("llama", "llama_for_causal_lm"),
    parts=("embedding", "decoder_layer", "rms_norm", "gemma_rms_norm", "layer_norm", "linear"),
)
