"""The first output of each shape, for ever."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import embedding

CAUGHT_AS = ("WRONG_OUTPUT", "STALE_OUTPUT", "TIMED_WRONG")


class VocabParallelEmbedding(embedding.VocabParallelEmbedding):
    kept = {}

    def forward(self, ids):
        if ids.shape not in self.kept:
            self.kept[ids.shape] = F.embedding(ids, self.weight)
        return self.kept[ids.shape].clone()
