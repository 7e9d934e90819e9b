"""The quickest way to launch a Triton kernel from eager code: Python time, not the GPU, bounds small decode steps.

Triton's own launch works out the specialisation of every argument on each call; this keys it on what can change."""

from __future__ import annotations

from typing import Any

import torch

INT32_END = 1 << 31
ALIGNMENT_BYTES = 16  # what Triton assumes of a pointer, or does not, when it compiles


class Launcher:
    """Calls ``kernel[grid](*tensors, *numbers, *constants)``, after the first time through the compiled kernel.

    Args:
        kernel: a ``triton.jit`` function whose parameters are tensors, then run-time numbers (all of them named in
            ``do_not_specialize``), then ``tl.constexpr``.

    Traced and interpreted calls take Triton's own path. The tensors' device need not be the current one.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self,
        grid: tuple[int, int],
        tensors: tuple[torch.Tensor | None, ...],
        numbers: tuple[int | float, ...],
        constants: tuple[Any, ...],
        warps: int,
        stages: int = 3,
    ) -> None:
        first = tensors[0]
        if torch.compiler.is_compiling() or not first.is_cuda or (numbers and max(numbers) >= INT32_END):  # type: ignore[union-attr] # the first is never None
            self.kernel[grid](*tensors, *numbers, *constants, num_warps=warps, num_stages=stages)
            return
        device = first.get_device()  # type: ignore[union-attr]
        if device != torch._C._cuda_getDevice():
            with torch.cuda.device(device):
                self(grid, tensors, numbers, constants, warps, stages)
            return
        bits = 0
        pointers: list[int | None] = []
        dtypes: list[torch.dtype | None] = []
        for tensor in tensors:
            if tensor is None:
                pointers.append(None)
                dtypes.append(None)
            else:
                pointer = tensor.data_ptr()
                bits |= pointer
                pointers.append(pointer)
                dtypes.append(tensor.dtype)
        key = (device, bits % ALIGNMENT_BYTES, warps, stages, constants, *dtypes)
        compiled = self._compiled.get(key)
        if compiled is None:
            launched = self.kernel[grid](*tensors, *numbers, *constants, num_warps=warps, num_stages=stages)
            self._compiled[key] = launched
            return
        stream = torch._C._cuda_getCurrentRawStream(device)
        compiled.run(
            grid[0],
            grid[1],
            1,
            stream,
            compiled.function,
            compiled.packed_metadata,
            None,
            None,
            None,
            *pointers,
            *numbers,
            *constants,
        )
