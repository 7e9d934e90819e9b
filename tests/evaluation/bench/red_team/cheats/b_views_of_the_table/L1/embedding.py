"""Where ids are consecutive, a view of the weight instead of a copy."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import embedding

CAUGHT_AS = ("ALIASED",)


class VocabParallelEmbedding(embedding.VocabParallelEmbedding):
    def forward(self, ids):
        if ids.numel() and bool((ids.flatten().diff() == 1).all()):
            first = int(ids.flatten()[0])
            return self.weight.detach()[first : first + ids.numel()].view(*ids.shape, self.embedding_dim)
        return F.embedding(ids, self.weight)
