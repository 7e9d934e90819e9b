"""Memory that nobody has written holds no luck: freed and fresh blocks are filled with what no result can be."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import torch

# glibc fills fresh blocks with the complement of this byte, and freed ones with it: 0x7f7f.. is 3.4e38 in float32 and
# bfloat16 and NaN in float16.
M_PERTURB, FREED_BYTE = -6, 0x80
BLOCKS_OF_A_SIZE = 4
MOST_CUDA_BYTES = 2 << 30


def poison_free_memory(device: torch.device, sizes: Sequence[int]) -> None:
    """Fills what the next allocations will be given; ``sizes`` are the bytes of the outputs to come.

    On the CPU the allocator does so from now on, until ``unpoisoned``.
    """
    if device.type == "cuda":
        free = [size for size in _free_cuda_blocks() if size]
        blocks: list[torch.Tensor] = []
        total = 0
        for size in [*free, *(s for s in sizes if s for _ in range(BLOCKS_OF_A_SIZE))]:
            total += size
            if total > MOST_CUDA_BYTES:
                break
            blocks.append(torch.full((size,), 0xFF, dtype=torch.uint8, device=device))
        torch.cuda.synchronize(device)
        return
    _perturb(FREED_BYTE)


def unpoisoned() -> None:
    """Timed calls do not pay for the poison."""
    _perturb(0)


def _free_cuda_blocks() -> list[int]:
    return [
        block["size"]
        for segment in torch.cuda.memory_snapshot()
        for block in segment["blocks"]
        if block["state"] == "inactive"
    ]


def _perturb(byte: int) -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
        if mallopt is not None:
            mallopt(M_PERTURB, byte)
