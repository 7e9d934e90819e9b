"""Inputs that exercise a model, drawn from a seed: smooth images, series with trends, tokens of real text.

White noise would not do: averaged over patches it is nearly the same in every image, and so is the model's answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.prompts import tokenise

GRIDS = (1, 2, 4, 8, 16, 32)  # cells across an image, coarse to fine
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class Request:
    """What inputs to draw: ``rows`` of ``tokens`` tokens, or of ``size`` (empty: the model's own)."""

    rows: int
    tokens: int
    size: tuple[int, ...]
    seed: int
    texts: tuple[str, ...]


def images(rows: int, channels: int, height: int, width: int, seed: int) -> Tensor:
    """Smooth random fields of mean 0 and deviation about 1, as normalised photographs have; (rows, channels, h, w).

    >>> images(2, 3, 8, 12, seed=0).shape
    torch.Size([2, 3, 8, 12])
    """
    draw = torch.Generator().manual_seed(seed)
    field = 0.05 * torch.randn(rows, channels, height, width, generator=draw)
    for cells in GRIDS:
        grid = torch.randn(rows, channels, cells, cells, generator=draw) / math.sqrt(len(GRIDS))
        field += F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)
    return field


def series(rows: int, length: int, channels: int, seed: int) -> Tensor:
    """A level, a trend, three periods and noise for each channel; (rows, length, channels)."""
    draw = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 1, length).view(1, length, 1)
    level, trend = torch.randn(2, rows, 1, channels, generator=draw).unbind()
    out = level + trend * time + 0.1 * torch.randn(rows, length, channels, generator=draw)
    for periods in (2, 7, 23):
        height, phase = torch.randn(2, rows, 1, channels, generator=draw).unbind()
        out += height * torch.sin(2 * math.pi * periods * time * (1 + 0.1 * phase) + phase)
    return out


def token_rows(model: nn.Module, request: Request, *, rows: int, tokens: int, seed: int) -> Tensor:
    """Ids of the request's texts, or random ones without any; int64 (rows, tokens).

    Raises:
        EvaluationError: more tokens than the model has positions for.
    """
    if tokens > position_limit(model):
        raise EvaluationError(
            f"{tokens} input tokens, {type(model).__name__} has {position_limit(model)} positions: "
            "give the workload fewer input_tokens."
        )
    folder = getattr(model, "name_or_path", "")
    known = folder if folder and (Path(folder) / "tokenizer_config.json").is_file() else None
    return tokenise(request.texts, known, model.config.vocab_size, tokens, rows, seed)


def lengths(rows: int, tokens: int) -> Tensor:
    """Tokens of each row: the first is full, the others are down to half as long; the same for every seed.

    >>> lengths(4, 16)
    tensor([16, 12, 15, 10])
    """
    return tokens - ((torch.arange(rows) * GOLDEN) % 1 * tokens / 2).long()


def position_limit(model: nn.Module) -> int:
    """The longest text that the model takes; 512 where its config does not say."""
    return getattr(model.config, "max_position_embeddings", None) or 512


def image_size(config: Any, asked: tuple[int, ...], default: int) -> tuple[int, int]:
    """Height and width: as asked, else as the config says, else ``default``."""
    own = getattr(config, "image_size", None) or getattr(config, "sample_size", None) or default
    size = asked or (tuple(own) if isinstance(own, (list, tuple)) else (own,))
    return size[0], size[-1]


def mixed(one: Mapping[str, Tensor], two: Mapping[str, Tensor], *, turn: int, seed: int) -> dict[str, Tensor]:
    """Inputs made of two draws, others at every turn: of token ids some of each, of floats ``cos a one + sin a two``.

    The angle ``a`` goes round by the golden section, so that the inputs of few turns are far apart; their deviation is
    that of the draws. Tensors that are equal in both, such as masks, come out equal.
    """
    draw = torch.Generator().manual_seed(seed + turn)
    angle = 2 * math.pi * (turn * GOLDEN % 1)
    out = {}
    for name, a in one.items():
        b = two[name]
        if not a.is_floating_point():
            out[name] = torch.where((torch.rand(a.shape, generator=draw) < 0.5).to(a.device), b, a)
        else:
            out[name] = a if torch.equal(a, b) else math.cos(angle) * a + math.sin(angle) * b
    return out
