"""Writes keys and values into a paged pool through a slot table, with a Triton kernel whose operator declares it, and
attends over the pool."""

import torch
import triton
import triton.language as tl
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.attention import Attention


@triton.jit
def kernel(key, value, key_pool, value_pool, slots, n, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    to = tl.load(slots + row) * WIDTH
    tl.store(key_pool + to + at, tl.load(key + row * WIDTH + at, mask=inside), mask=inside)
    tl.store(value_pool + to + at, tl.load(value + row * WIDTH + at, mask=inside), mask=inside)


@custom_op("clean_cuda_kv_write::write", mutates_args={"key_pool", "value_pool"})
def write(
    key: torch.Tensor, value: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor, slots: torch.Tensor
) -> None:
    rows, width = key.shape
    kernel[(rows,)](key, value, key_pool, value_pool, slots, rows, WIDTH=width, BLOCK=triton.next_power_of_2(width))


@write.register_fake
def _(
    key: torch.Tensor, value: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor, slots: torch.Tensor
) -> None:
    return None


@fastkernels.candidate("attention", devices=("cuda",))
class PagedAttention(Attention):
    def forward(self, query, key, value, mask=None):
        width = max(key.shape[-1], value.shape[-1])
        if key.shape[-1] != value.shape[-1]:
            return super().forward(query, key, value, mask)
        rows = key.shape[0] * key.shape[1] * key.shape[2]
        key_pool, value_pool = key.new_empty(rows, width), value.new_empty(rows, width)
        slots = torch.arange(rows - 1, -1, -1, device=key.device)
        write(key.reshape(rows, width), value.reshape(rows, width), key_pool, value_pool, slots)
        return super().forward(query, key_pool[slots].view(key.shape), value_pool[slots].view(value.shape), mask)
