"""How many calls does a timed batch have? It lasts long enough, and no memory is short."""

from __future__ import annotations

import torch

from fastkernels.evaluation.bench.result import Mode

BATCH_SECONDS = 0.02
MOST_CALLS, MOST_GRAPHS, LEAST_CALLS = 4096, 2048, 16  # the least where memory allows
MOST_CPU_BYTES = 64 << 20  # of a batch's inputs, and of its outputs
MOST_CUDA_BYTES, SHARE_OF_CUDA = 8 << 30, 1 / 20  # and of the device's memory: contestants keep two batches' outputs


def batch_calls(seconds: float, *, bytes_of_call: int, mode: Mode, device: torch.device) -> int:
    """Calls of a batch, each of so many ``seconds``, and of so many bytes of inputs or outputs.

    >>> cpu = torch.device("cpu")
    >>> [batch_calls(s, bytes_of_call=1 << 20, mode="eager", device=cpu) for s in (1e-3, 1e-2, 1e-7)]
    [20, 16, 64]
    """
    most = MOST_GRAPHS if mode == "graph" else MOST_CALLS
    return max(1, int(min(max(BATCH_SECONDS / seconds, LEAST_CALLS), most_bytes(device) / bytes_of_call, most)))


def most_bytes(device: torch.device) -> float:
    """Memory that a batch's inputs may take, and its outputs too."""
    if device.type == "cpu":
        return MOST_CPU_BYTES
    return min(MOST_CUDA_BYTES, torch.cuda.get_device_properties(device).total_memory * SHARE_OF_CUDA)
