"""Takes the rows in chunks, the last one first, into one output."""

import torch

from fastkernels.tasks.L1 import softmax

ROWS = 2


class Softmax(softmax.Softmax):
    def forward(self, x):
        last = x.movedim(self.dim, -1)
        rows = last.reshape(-1, last.shape[-1])
        out = torch.empty_like(rows)
        wide = torch.promote_types(x.dtype, torch.float32)
        for start in reversed(range(0, len(rows), ROWS)):
            out[start : start + ROWS] = torch.softmax(rows[start : start + ROWS].to(wide), -1).to(x.dtype)
        return out.view(last.shape).movedim(-1, self.dim)
