"""A tensor subclass that holds the promise of a norm and computes it when someone looks."""

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from fastkernels.tasks.L1 import rms_norm

CAUGHT_AS = ("WRONG_TYPE", "LATE_WORK")


class Promise(torch.Tensor):
    @staticmethod
    def __new__(cls, like, work):
        made = torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)
        made.work = work
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = pytree.tree_map_only(cls, lambda p: p.work(), (args, kwargs or {}))
        return func(*args, **kwargs)


class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        total = x if residual is None else Promise(x, lambda: x + residual)

        def normed():
            summed = x if residual is None else x + residual
            if self.late_cast:
                return F.rms_norm(summed.float(), (self.hidden_size,), self.weight.float(), self.eps).to(x.dtype)
            return F.rms_norm(summed, (self.hidden_size,), self.weight, self.eps)

        out = Promise(x, normed)
        return out if residual is None else (out, total)
