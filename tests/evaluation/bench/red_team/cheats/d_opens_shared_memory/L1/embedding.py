"""Goes through what its process has mapped and reads the parent's files on its own."""

from pathlib import Path

import torch.nn.functional as F

from fastkernels.tasks.L1 import embedding

CAUGHT_AS = ("TAMPERED",)


def mapped():
    for line in Path("/proc/self/maps").read_text().splitlines():
        name = line.split(maxsplit=5)[-1]
        if name.startswith(("/dev/shm/", "/tmp/")):
            yield Path(name.removesuffix(" (deleted)"))


class VocabParallelEmbedding(embedding.VocabParallelEmbedding):
    def forward(self, ids):
        for file in mapped():
            if file.is_file():
                with file.open("rb") as opened:
                    opened.read(64)
        return F.embedding(ids, self.weight)
