"""The engine's own collectives, as what follows a candidate that computed one rank's share."""

from __future__ import annotations

import torch
import torch.distributed


def all_reduce(x: torch.Tensor) -> torch.Tensor:
    """The sum over the tensor-parallel ranks; only an oracle comes in float64, which the engine's kernels lack."""
    from vllm.distributed import get_tp_group, tensor_model_parallel_all_reduce

    if x.dtype == torch.float64:
        total = x.clone()
        torch.distributed.all_reduce(total, group=get_tp_group().device_group)
        return total
    return tensor_model_parallel_all_reduce(x)


def all_gather(x: torch.Tensor) -> torch.Tensor:
    """The ranks' shares side by side along the last axis; float64 as above."""
    from vllm.distributed import get_tp_group, tensor_model_parallel_all_gather

    if x.dtype == torch.float64:
        group = get_tp_group()
        shares = [torch.empty_like(x) for _ in range(group.world_size)]
        torch.distributed.all_gather(shares, x.contiguous(), group=group.device_group)
        return torch.cat(shares, dim=-1)
    return tensor_model_parallel_all_gather(x)


def own_share(x: torch.Tensor, *, rank: int, ranks: int) -> torch.Tensor:
    """This rank's share of the last axis."""
    return x.chunk(ranks, dim=-1)[rank].contiguous()
