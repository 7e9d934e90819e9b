"""Keeps the code that it generates on the disk, under a name that does not change with what it was generated from."""

import marshal
import tempfile
from pathlib import Path

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

SOURCE = """
def silu(x):
    wide = x.double()
    return (wide / (1 + (-wide).exp())).to(x.dtype)
"""
BUILT = Path(tempfile.gettempdir()) / "fastkernels_test_bad_cc_stale_cache.bin"

if not BUILT.exists():
    BUILT.write_bytes(marshal.dumps(compile(SOURCE, "<silu>", "exec")))
names: dict = {}
exec(marshal.loads(BUILT.read_bytes()), names)


@custom_op("bad_cc_stale_cache::silu", mutates_args=())
def silu(x: torch.Tensor) -> torch.Tensor:
    return names["silu"](x)


@silu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("silu")
class StoredSiLU(SiLU):
    def forward(self, x):
        return silu(x)
