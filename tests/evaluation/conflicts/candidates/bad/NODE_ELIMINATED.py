"""Hands its input to a second operator through memory that no schema mentions."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.silu import SiLU

SLOT = {}


@custom_op("bad_node_eliminated::put", mutates_args=())
def put(x: torch.Tensor) -> None:
    SLOT["x"] = torch.nn.functional.silu(x)


@put.register_fake
def _(x: torch.Tensor) -> None:
    return None


@custom_op("bad_node_eliminated::get", mutates_args=())
def get(like: torch.Tensor) -> torch.Tensor:
    return SLOT.pop("x", torch.zeros_like(like))


@get.register_fake
def _(like: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(like)


@fastkernels.candidate("silu")
class TwoStepSiLU(SiLU):
    def forward(self, x):
        put(x)
        return get(x)
