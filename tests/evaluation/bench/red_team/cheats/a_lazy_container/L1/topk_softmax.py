"""A subclass of tuple that computes its two tensors when it is iterated."""

import torch

from fastkernels.tasks.L1 import topk_softmax

CAUGHT_AS = ("WRONG_TYPE", "WRONG_SHAPE", "LATE_WORK")


class Later(tuple):
    __slots__ = ()

    def work(self):
        module, x = tuple.__getitem__(self, 0), tuple.__getitem__(self, 1)
        shares = torch.softmax(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
        weights, ids = torch.topk(shares, module.top_k, dim=-1)
        return (weights / weights.sum(-1, keepdim=True) if module.renormalize else weights), ids

    def __iter__(self):
        return iter(self.work())

    def __getitem__(self, i):
        return self.work()[i]


class TopkSoftmax(topk_softmax.TopkSoftmax):
    def forward(self, gating_output):
        return Later((self, gating_output))
