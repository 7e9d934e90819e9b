"""Memory that nobody has written holds no luck: freed and fresh blocks are filled with what no result can be."""

from __future__ import annotations

import ctypes
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

# glibc fills fresh blocks with the complement of this byte, and freed ones with it: 0x7f7f.. is 3.4e38 in float32 and
# bfloat16 and NaN in float16.
M_PERTURB, FREED_BYTE = -6, 0x80
CUDA_BYTE = 0xFF  # NaN in every dtype
BLOCKS_OF_A_SIZE = 4
MOST_CUDA_BYTES = 8 << 30  # of one pool: 3 ms


def poison_free_memory(device: torch.device, sizes: Sequence[int]) -> None:
    """Fills what the next allocations will be given; ``sizes`` are the bytes of the outputs to come.

    On CUDA that is every free block of the caching allocator, whichever stream's or graph's pool has it; blocks for the
    outputs are made where there are none. On the CPU the allocator does it from now on, until ``unpoisoned``.
    """
    if device.type != "cuda":
        _perturb(FREED_BYTE)
        return
    wanted = [size for size in sizes if size for _ in range(BLOCKS_OF_A_SIZE)]
    del wanted[_within(wanted) :]
    made = [torch.empty(size, dtype=torch.uint8, device=device) for size in wanted]
    del made  # they stay in the allocator's cache
    torch.cuda.synchronize(device)  # free blocks may still be in use by what was launched before
    for address, size in _free_cuda_blocks(device, largest=max(sizes, default=0)):
        storage = torch._C._construct_storage_from_data_pointer(address, device, size)
        torch.empty(0, dtype=torch.uint8, device=device).set_(storage, 0, (size,), (1,)).fill_(CUDA_BYTE)
    torch.cuda.synchronize(device)


def unpoisoned() -> None:
    """Timed calls do not pay for the poison."""
    _perturb(0)


def _free_cuda_blocks(device: torch.device, *, largest: int) -> list[tuple[int, int]]:
    """Address and bytes of free blocks, of each pool at most ``MOST_CUDA_BYTES``: first those that an output of
    ``largest`` bytes may be given, the allocator takes the smallest that fits."""
    index = torch.cuda.current_device() if device.index is None else device.index
    pools: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for segment in torch.cuda.memory_snapshot():
        if segment["device"] == index:
            free = [b for b in segment["blocks"] if b["state"] == "inactive" and b["size"]]
            pools[segment.get("segment_pool_id")] += [(b["address"], b["size"]) for b in free]
    found = []
    for blocks in pools.values():
        blocks.sort(key=lambda block: (block[1] < largest, block[1] if block[1] >= largest else -block[1]))
        found += blocks[: _within([size for _, size in blocks])]
    return found


def _within(sizes: Sequence[int]) -> int:
    """How many of the first sizes fit into the limit."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > MOST_CUDA_BYTES:
            return count
    return len(sizes)


def _perturb(byte: int) -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
        if mallopt is not None:
            mallopt(M_PERTURB, byte)
