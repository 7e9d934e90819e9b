"""RoPE tables of a transformers model: which rotary module feeds an attention module, and how its table is laid out."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastkernels.patches.fingerprint import argument_names
from fastkernels.patches.recognise import Host


@dataclass(frozen=True)
class Table:
    """Full tables (1, S, width) as the model passes them, and how a half-width table is taken from them."""

    cos: torch.Tensor
    sin: torch.Tensor
    layout: str  # "cat": both halves equal; "interleave": neighbours equal; "half": half-width already

    @property
    def rotary_dim(self) -> int:
        return self.cos.shape[-1] * (2 if self.layout == "half" else 1)


def halves_for(table: Table | None, host: Host) -> Halves | None:
    """The one ``Halves`` of this layout that all attention modules of the host's model share."""
    return None if table is None else host.memo.setdefault(f"halves {table.layout}", Halves(table.layout))


class Halves:
    """Takes half-width tables out of the model's, once for all layers that get the same pair in a step."""

    def __init__(self, layout: str) -> None:
        self.layout = layout
        # One attribute, read once: another thread may put its own pair there at any time.
        self._kept: tuple[Any, tuple[torch.Tensor, torch.Tensor]] | None = None

    def __call__(self, tables: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.compiler.is_dynamo_compiling():  # it breaks the graph at ``is`` between tuples, and needs no memory
            return self._cut(tables)
        kept = self._kept
        if kept is None or kept[0] is not tables:
            kept = self._kept = (tables, self._cut(tables))
        return kept[1]

    def _cut(self, tables: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.layout == "half":
            return tables
        cos, sin = tables
        if self.layout == "interleave":
            return cos[..., ::2], sin[..., ::2]
        half = cos.shape[-1] // 2
        return cos[..., :half], sin[..., :half]


def rotary_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that turn (x, position_ids) into (cos, sin), by path."""
    return [(path, module) for path, module in model.named_modules() if is_rotary(module)]


def is_rotary(module: nn.Module) -> bool:
    """A module that turns (x, position_ids) into tables."""
    names = argument_names(type(module))[:2]
    return any("inv_freq" in b for b in module._buffers) and names == ("x", "position_ids")


def table_for(module: nn.Module, host: Host, *, length: int) -> Table | None:
    """The table that the model would pass to ``module`` for positions 0 .. length-1, on the CPU in float32."""
    original = host.images.get(id(module), module)
    path = host.path(module)
    if "rotary" not in host.memo:
        host.memo["rotary"] = rotary_modules(host.model)
    best: tuple[int, str, nn.Module] | None = None
    for where, rotary in host.memo["rotary"]:
        owner = where.rpartition(".")[0]
        if path.startswith(owner) and (best is None or len(owner) > best[0]):
            best = (len(owner), where, rotary)
    if best is None:
        return None
    layer_type = _layer_type(original)
    key = f"table {best[1]} {layer_type} {length}"
    if key not in host.memo:
        host.memo[key] = _tables(best[2], layer_type, length)
    return host.memo[key]


def _layer_type(module: nn.Module) -> str | None:
    own = getattr(module, "layer_type", None)
    types = getattr(getattr(module, "config", None), "layer_types", None)
    index = getattr(module, "layer_idx", None)
    if isinstance(own, str) or types is None or index is None or index >= len(types):
        return own if isinstance(own, str) else None
    return types[index]


def _tables(rotary: nn.Module, layer_type: str | None, length: int) -> Table | None:
    if any(b.is_meta for b in rotary.buffers()):
        rotary = type(rotary)(config=rotary.config)
    clone = copy.deepcopy(rotary).to("cpu")
    arguments: dict[str, object] = {}
    if "layer_type" in argument_names(type(rotary)):
        arguments["layer_type"] = layer_type
    positions = torch.arange(length)[None]
    out = None
    for given in (positions, positions.expand(3, 1, -1)):  # plain, or one row each for time, height and width
        try:
            with torch.no_grad():
                out = type(clone).forward(clone, torch.zeros(1, length, 8), given, **arguments)
            break
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError, AttributeError):
            continue
    if not (isinstance(out, tuple) and len(out) == 2 and all(isinstance(t, torch.Tensor) for t in out)):
        return None
    cos, sin = (t.float() for t in out)
    if cos.dim() != 3 or length < 2:
        return None
    return Table(cos=cos, sin=sin, layout=_layout(sin))


def _layout(sin: torch.Tensor) -> str:
    half = sin.shape[-1] // 2
    if sin.shape[-1] % 2 == 0 and torch.equal(sin[..., :half], sin[..., half:]):
        return "cat"
    if sin.shape[-1] % 2 == 0 and torch.equal(sin[..., ::2], sin[..., 1::2]):
        return "interleave"
    return "half"
