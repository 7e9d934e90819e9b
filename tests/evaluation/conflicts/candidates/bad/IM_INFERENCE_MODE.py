"""Makes sure, by the version counter, that its operator did not write the input; inference tensors have none."""

import torch
from torch.library import custom_op

import fastkernels
from fastkernels.tasks.L1.relu import ReLU


@custom_op("bad_im_inference_mode::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    version = x._version
    out = x.clamp(min=0)
    if x._version != version:
        raise RuntimeError("the input was written")
    return out


@relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@fastkernels.candidate("relu")
class CheckedReLU(ReLU):
    def forward(self, x):
        return relu(x)
