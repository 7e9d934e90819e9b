"""Opens its own memory as a file, by which read-only pages and C-level references can be rewritten."""

import torch.nn.functional as F

from fastkernels.tasks.L1 import embedding

CAUGHT_AS = ("TAMPERED",)


class VocabParallelEmbedding(embedding.VocabParallelEmbedding):
    def forward(self, ids):
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(self.weight.data_ptr())
            memory.read(4)
        return F.embedding(ids, self.weight)
