"""Gated MLP: one product for gate and up, the product down; on Hopper the first of a prefill also activates its tiles.

There the activation needs no pass of its own, which wrote and read the wide product. Llama-3.1-8B on an H200: 702 us
against 729 for 2048 tokens, 5.71 ms against 5.96 for 16384, and the same bits."""

# ruff: noqa: ANN001, ANN202 - the arguments of a Triton kernel have no Python types
from __future__ import annotations

import functools
import importlib.util
import os

import torch
import torch.nn.functional as F
from torch.compiler import is_compiling

from fastkernels.runtime.candidate import candidate
from fastkernels.runtime.gemv import gemv
from fastkernels.runtime.launch import Launcher, is_compiling_ahead
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.L2 import gated_mlp

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The shapes measured: from 1024 rows and 6.8 tiles for each multiprocessor on. 512 rows (3.4 tiles) lose 16%.
MIN_ROWS, MIN_WAVES = (1, 0) if INTERPRETED else (1024, 6)
BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DEPTH = 128, 128, 64  # a tile holds as many columns of gate and as many of up
GROUP = 8  # tiles of rows that share a tile of weights while it is in the L2 cache
WARPS, STAGES = 8, 3

if importlib.util.find_spec("triton") is not None and importlib.util.find_spec("triton.tools.tensor_descriptor"):
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    @triton.jit(do_not_specialize=["rows"])
    def _swiglu_kernel(
        out,
        x,
        weight,
        rows,
        WIDTH: tl.constexpr,
        DEPTH: tl.constexpr,
        BLOCK_ROWS: tl.constexpr,
        BLOCK_COLUMNS: tl.constexpr,
        BLOCK_DEPTH: tl.constexpr,
        GROUP: tl.constexpr,
        STAGES: tl.constexpr,
    ):
        """Tiles of ``silu(x gate^T) * (x up^T)``; ``weight`` (2, WIDTH, DEPTH) holds gate and up."""
        row_tiles = tl.cdiv(rows, BLOCK_ROWS)
        column_tiles: tl.constexpr = (WIDTH + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
        for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0), flatten=True):
            first = tile // (GROUP * column_tiles) * GROUP
            size = tl.minimum(row_tiles - first, GROUP)
            row = (first + tile % (GROUP * column_tiles) % size) * BLOCK_ROWS
            column = tile % (GROUP * column_tiles) // size * BLOCK_COLUMNS
            both = tl.zeros([BLOCK_ROWS, 2 * BLOCK_COLUMNS], tl.float32)
            for depth in tl.range(0, DEPTH, BLOCK_DEPTH, num_stages=STAGES):
                left = x.load([row, depth])
                right = weight.load([0, column, depth]).reshape(2 * BLOCK_COLUMNS, BLOCK_DEPTH)
                both = tl.dot(left, right.T, both)
            gate, up = tl.split(both.reshape(BLOCK_ROWS, 2, BLOCK_COLUMNS).permute(0, 2, 1))
            dtype = out.dtype
            gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)  # as the product would be stored
            active = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
            out.store([row, column], (active * up).to(dtype))

    _launch_swiglu = Launcher(_swiglu_kernel)
else:
    _launch_swiglu = None


@candidate("gated_mlp", lowering="inline")
class LlamaMLP(gated_mlp.LlamaMLP):
    """Gate and up are one storage, so this reads the input once; the activation is the part in force."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _project(self._modules["down_proj"], self._activated(x))

    def accumulate(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """``residual + forward(x)``, perhaps in ``residual``: the product down adds while it stores its tiles."""
        down = self._modules["down_proj"]
        if not x.is_cuda or type(down) is not Linear or down.bias is not None or torch.is_grad_enabled():
            return residual + LlamaMLP.forward(self, x)  # not self.forward: that one is counted
        activated = self._activated(x)
        one = gemv(activated, down.weight, residual) if is_compiling() else None
        if one is not None:
            return one
        width = residual.shape[-1]
        residual.view(-1, width).addmm_(activated.view(-1, activated.shape[-1]), down.weight.t())
        return residual

    def _activated(self, x: torch.Tensor) -> torch.Tensor:
        parts = self._modules  # a plain dict: nn.Module's own look-up costs a microsecond a name
        gate_up, activation = parts["gate_up_proj"], parts["act_fn"]
        if is_compiling() and type(gate_up) is Linear and gate_up.bias is None and _silu(activation):
            one = gemv(x, gate_up.weight, gated=True)
            if one is not None:
                return one
        # In a graph it would be a guard on the batch, for a kernel that no graph holds.
        many = not is_compiling() and x.numel() >= MIN_ROWS * x.shape[-1]
        if (many or is_compiling_ahead()) and _fuses(x, gate_up, activation):
            weight = gate_up.weight
            if many and _tiles(x, weight) >= MIN_WAVES * _multiprocessors(x.device):
                return _swiglu(x, weight)
            if is_compiling_ahead():
                _swiglu(x, weight)  # no probe is as long as the prefills that meet it
        return activation(_project(gate_up, x))


def _fuses(x: torch.Tensor, gate_up: torch.nn.Module, activation: torch.nn.Module) -> bool:
    """Whether one kernel may do both parts' work."""
    if _launch_swiglu is None or not _silu(activation):
        return False
    if type(gate_up) is not Linear or gate_up.bias is not None or not _takes(x.dtype, x.device):
        return False
    weight = gate_up.weight
    return (
        weight.dtype == x.dtype
        and weight.is_contiguous()
        and weight.data_ptr() % 16 == 0
        and weight.shape[0] % 16 == weight.shape[1] % 8 == 0  # a descriptor's rows begin at multiples of 16 bytes
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    )


def _silu(activation: torch.nn.Module) -> bool:
    """Whether a kernel here may do its work: the interface itself, or the candidate of this folder."""
    return type(activation) is SiluAndMul or (
        isinstance(activation, SiluAndMul) and getattr(type(activation), "absorbable", False)
    )


@functools.cache
def _takes(dtype: torch.dtype, device: torch.device) -> bool:
    if INTERPRETED:
        return dtype == torch.float32  # it multiplies the bits of bfloat16
    if dtype not in (torch.bfloat16, torch.float16) or device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device)[0] == 9


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _tiles(x: torch.Tensor, weight: torch.Tensor) -> int:
    rows, width = x.numel() // x.shape[-1], weight.shape[0] // 2
    return -(-rows // BLOCK_ROWS) * -(-width // BLOCK_COLUMNS)


def _swiglu(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    width, depth = weight.shape[0] // 2, weight.shape[1]
    out = x.new_empty((*x.shape[:-1], width))
    flat = x.reshape(-1, depth)
    if not flat.is_contiguous() or flat.data_ptr() % 16:
        flat = flat.clone(memory_format=torch.contiguous_format)
    rows = flat.shape[0]
    _launch_swiglu(
        (min(_tiles(x, weight), _multiprocessors(x.device)), 1),
        (
            TensorDescriptor.from_tensor(out.view(rows, width), [BLOCK_ROWS, BLOCK_COLUMNS]),
            TensorDescriptor.from_tensor(flat, [BLOCK_ROWS, BLOCK_DEPTH]),
            TensorDescriptor.from_tensor(weight.view(2, width, depth), [2, BLOCK_COLUMNS, BLOCK_DEPTH]),
        ),
        (rows,),
        (width, depth, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DEPTH, GROUP, STAGES),
        WARPS,
        STAGES,
    )
    return out


def _project(linear: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    if type(linear) is not Linear:
        return linear(x)
    out = gemv(x, linear.weight, linear.bias) if is_compiling() else None
    return F.linear(x, linear.weight, linear.bias) if out is None else out
