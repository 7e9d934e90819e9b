"""Folders of candidates for tests of serving: one RMS norm, right or not."""

from __future__ import annotations

from pathlib import Path

NORM = """
import torch
from torch import nn

class RMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x, residual=None):
        if residual is not None:
            x = residual = x + residual
        wide = x.float()
        normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        out = normed * self.weight * {factor}
        return out if residual is None else (out, residual)
"""


def norm(folder: Path, *, factor: float = 1.0, before: str = "") -> Path:
    """A folder with one candidate for ``rms_norm``, wrong by ``factor``; ``before`` is code ahead of it."""
    file = folder / "L1" / "rms_norm.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(before + NORM.format(factor=factor))
    return folder
