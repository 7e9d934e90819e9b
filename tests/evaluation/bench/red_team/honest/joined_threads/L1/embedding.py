"""Two threads of its own share the rows, and have ended when the call returns."""

from concurrent.futures import ThreadPoolExecutor

import torch

from fastkernels.tasks.L1 import embedding


class VocabParallelEmbedding(embedding.VocabParallelEmbedding):
    def forward(self, ids):
        flat = ids.flatten()
        weight = self.weight.detach()
        out = torch.empty((len(flat), self.embedding_dim), dtype=weight.dtype, device=weight.device)
        half = len(flat) // 2

        def part(rows):
            torch.index_select(weight, 0, flat[rows], out=out[rows])

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(part, (slice(0, half), slice(half, None))))
        return out.view(*ids.shape, self.embedding_dim)
