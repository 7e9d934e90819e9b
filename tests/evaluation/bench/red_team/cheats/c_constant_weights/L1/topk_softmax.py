"""Drawn logits are one grid, shuffled: the best few weigh the same in every row. Kept from the first row seen."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import topk_softmax

CAUGHT_AS = ("WRONG_OUTPUT", "STALE_OUTPUT", "TIMED_WRONG")


class TopkSoftmax(topk_softmax.TopkSoftmax):
    kept = None

    def forward(self, gating_output):
        logits, ids = torch.topk(gating_output, self.top_k, dim=-1)
        if self.kept is None and len(logits):
            shares = F.softmax(gating_output[:1].float(), dim=-1).gather(1, ids[:1])
            self.kept = shares / shares.sum() if self.renormalize else shares
        if self.kept is None:
            return logits.float(), ids
        return self.kept.expand(ids.shape).contiguous(), ids
