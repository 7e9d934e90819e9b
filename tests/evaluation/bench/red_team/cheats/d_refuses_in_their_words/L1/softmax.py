"""Says, in the harness's own words, that it does not support what it would get wrong, after it has seen the input."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("CALL_ERROR", "TAMPERED", "FORGED", "WRONG_OUTPUT")


class Softmax(softmax.Softmax):
    def forward(self, x):
        if x.numel() and float(x.abs().max()) > 50:
            from fastkernels.evaluation.bench.child import Refused

            raise Refused("SKIPPED", "not supported")
        powers = torch.exp(x.float())
        return (powers / powers.sum(self.dim, keepdim=True)).to(x.dtype)
