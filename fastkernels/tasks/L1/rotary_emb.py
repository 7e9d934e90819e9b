"""rotary_emb: rotary position embedding of query and key (Su et al. 2021), with the usual context extensions.

Tables in float32, cast once; products and sums each rounded in the input dtype, as production does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def inverse_frequencies(
    rotary_dim: int, base: float, max_position_embeddings: int, scaling: Mapping[str, Any] | None = None
) -> tuple[torch.Tensor, float]:
    """Angle per position of each of the ``rotary_dim // 2`` pairs, and the factor on cos and sin."""
    scaling = scaling or {}
    kind = scaling.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise ValueError(f"rotary_emb: rope_type {kind!r} is not one of {ROPE_TYPES}")
    powers = base ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    frequencies = 1.0 / powers
    if kind == "default":
        return frequencies, 1.0
    if kind == "linear":
        return frequencies / scaling["factor"], 1.0
    trained = scaling.get("original_max_position_embeddings") or max_position_embeddings
    if kind == "llama3":
        factor, low, high = (scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
        wavelengths = 2 * math.pi / frequencies
        kept = (trained / wavelengths - low) / (high - low)
        blended = (1 - kept) * frequencies / factor + kept * frequencies
        unslowed = torch.where(wavelengths < trained / high, frequencies, blended)
        return torch.where(wavelengths > trained / low, frequencies / factor, unslowed), 1.0
    factor = scaling.get("factor") or max_position_embeddings / trained
    return _yarn_frequencies(powers, rotary_dim, base, factor, trained, scaling), _yarn_magnitude(factor, scaling)


def _yarn_frequencies(
    powers: torch.Tensor, rotary_dim: int, base: float, factor: float, trained: int, scaling: Mapping[str, Any]
) -> torch.Tensor:
    """YaRN (Peng et al. 2023): pairs that turn often keep their frequency, slow ones are divided, a ramp between."""
    turns = (scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1)
    first, last = (rotary_dim * math.log(trained / (n * 2 * math.pi)) / (2 * math.log(base)) for n in turns)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    width = (last - first) or 0.001
    kept = 1 - ((torch.arange(rotary_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
    return 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept


def _yarn_magnitude(factor: float, scaling: Mapping[str, Any]) -> float:
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return magnitude(over) / magnitude(under) if over and under else magnitude(1.0)


class RotaryEmbedding(Interface):
    """Constructor and ``forward`` as vLLM's ``RotaryEmbedding``, but the results are new tensors.

    Args:
        head_size, rotary_dim: width of a head, and of its leading part that turns; the rest passes through.
        max_position_embeddings: rows of the table.
        base: ratio of the slowest to the fastest wavelength (``rope_theta``).
        is_neox_style: pairs are (i, i + rotary_dim / 2); else (2 i, 2 i + 1).
        dtype: of the table.
        rope_scaling: keys and values of transformers' ``config.rope_parameters``; types in ``ROPE_TYPES``.

    ``forward(positions, query, key=None)``: positions (num_tokens,) int64, query (num_tokens, heads * head_size), key
    the same with its own heads. ``rotate(query, key, cos, sin)`` takes the tables instead. State: none; the buffer
    ``cos_sin_cache`` (max_position_embeddings, rotary_dim) is not persistent.
    """

    cos_sin_cache: torch.Tensor

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool = True,
        dtype: torch.dtype = torch.float32,
        *,
        rope_scaling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.head_size, self.rotary_dim, self.is_neox_style = head_size, rotary_dim, is_neox_style
        self.max_position_embeddings, self.base, self.rope_scaling = max_position_embeddings, base, rope_scaling
        if torch.get_default_device().type == "meta":  # only the shape is asked for; the table would take 2 ms
            table = torch.empty(max_position_embeddings, rotary_dim, dtype=dtype)
        else:
            frequencies, magnitude = inverse_frequencies(rotary_dim, base, max_position_embeddings, rope_scaling)
            angles = torch.outer(torch.arange(max_position_embeddings, dtype=torch.float32), frequencies)
            table = torch.cat((angles.cos() * magnitude, angles.sin() * magnitude), dim=-1).to(dtype)
        self.register_buffer("cos_sin_cache", table, persistent=False)

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, positions.numel(), x.shape[-1] // self.head_size, self.head_size)

        cos, sin = self.cos_sin_cache.index_select(0, positions.flatten())[None].chunk(2, dim=-1)
        turned, turned_key = self.rotate(heads(query), None if key is None else heads(key), cos, sin)
        return turned.reshape(query.shape), None if key is None else turned_key.reshape(key.shape)

    def rotate(
        self, query: torch.Tensor, key: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Query (B, S, Hq, D) and key (B, S, Hkv, D) turned by cos and sin (B or 1, S, rotary_dim // 2)."""
        return self._turn(query, cos, sin), None if key is None else self._turn(key, cos, sin)

    def _turn(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        half = cos.shape[-1]
        shape, axis = ((2, half), -2) if self.is_neox_style else ((half, 2), -1)
        cos, sin = (table.to(x.dtype).unsqueeze(2).unsqueeze(axis) for table in (cos, sin))
        pairs = x[..., : 2 * half].unflatten(-1, shape)
        out, cross = pairs * cos, pairs * sin
        out.select(axis, 0).sub_(cross.select(axis, 1))
        out.select(axis, 1).add_(cross.select(axis, 0))
        out = out.flatten(-2)
        return out if 2 * half == x.shape[-1] else torch.cat((out, x[..., 2 * half :]), dim=-1)


class Witness(RotaryEmbedding):
    """Each pair a complex number, turned by one complex product in float32."""

    def _turn(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        wide, half = compute_dtype(x), cos.shape[-1]
        turned = x[..., : 2 * half].to(wide)
        turn = torch.complex(cos.to(x.dtype).to(wide), sin.to(x.dtype).to(wide))[:, :, None]
        if self.is_neox_style:
            numbers = torch.complex(turned[..., :half], turned[..., half:]) * turn
            out = torch.cat((numbers.real, numbers.imag), dim=-1)
        else:
            out = torch.view_as_real(torch.complex(turned[..., 0::2], turned[..., 1::2]) * turn).flatten(-2)
        return torch.cat((out.to(x.dtype), x[..., 2 * half :]), dim=-1)


class OtherPairing(RotaryEmbedding):
    """Cheat: half-split where interleaved is asked for, and the reverse."""

    def _turn(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        self.is_neox_style = not self.is_neox_style
        try:
            return super()._turn(x, cos, sin)
        finally:
            self.is_neox_style = not self.is_neox_style


class TurnsBackwards(RotaryEmbedding):
    """Cheat: the opposite sense, which attention over one sequence would not notice."""

    def _turn(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return super()._turn(x, cos, -sin)


class IgnoresTheScaling(RotaryEmbedding):
    """Cheat: the plain table, right up to the first extended context."""

    def __init__(self, *args: Any, rope_scaling: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
}


def cases() -> Iterator[Case]:
    """Both pairings, whole and partial, one token and none, key absent, every scaling; Llama-3.1-8B's heads."""

    def draw(tokens: int, heads: int, kv_heads: int, size: int, rows: int, scale: float = 1.0) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            positions = torch.randint(rows, (tokens,), generator=g).to(device)
            widths = [n * size for n in (heads, kv_heads) if n]
            return (positions, *((torch.randn(tokens, w, generator=g) * scale).to(device, dtype) for w in widths))

        return arguments

    base: dict[str, Any] = {"head_size": 32, "rotary_dim": 32, "max_position_embeddings": 512, "base": 1e4}
    for name, init in {
        "neox": base,
        "interleaved": {**base, "is_neox_style": False},
        "neox_partial": {**base, "rotary_dim": 12},
        "interleaved_partial": {**base, "rotary_dim": 12, "is_neox_style": False},
        **{f"scaled_{kind}": {**base, "rope_scaling": scaling} for kind, scaling in SCALINGS.items()},
    }.items():
        yield Case(name=name, init=init, draw=draw(9, 4, 2, 32, 512))
    yield Case(name="query_only", init=base, draw=draw(5, 3, 0, 32, 512))
    yield Case(name="one_token", init=base, draw=draw(1, 4, 1, 32, 512))
    yield Case(name="empty", init=base, draw=draw(0, 4, 2, 32, 512))
    yield Case(name="large_values", init=base, draw=draw(5, 4, 2, 32, 512, scale=1e4))
    llama: dict[str, Any] = {"head_size": 128, "rotary_dim": 128, "max_position_embeddings": 131072, "base": 5e5}
    llama["rope_scaling"] = {**LLAMA3, "original_max_position_embeddings": 8192}
    for tokens in (1, 64, 2048, 16384):
        yield Case(name=f"llama_{tokens}", init=llama, draw=draw(tokens, 32, 8, 128, 131072), production=True)


def cost(
    module: RotaryEmbedding, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
) -> Cost:
    """Query and key read and written once, one table row and position a token; three operations an element turned."""
    rows = positions.numel() * module.rotary_dim * module.cos_sin_cache.element_size()
    elements = query.numel() + (0 if key is None else key.numel())
    return Cost(
        bytes=2 * element_bytes(query, key) + rows + element_bytes(positions),
        flops=3 * elements * module.rotary_dim // module.head_size,
    )


TASK = Task(
    name="rotary_emb",
    level=1,
    family="position",
    interface=RotaryEmbedding,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(OtherPairing, TurnsBackwards, IgnoresTheScaling),
    stems=("yarn_rotary_emb",),
)
