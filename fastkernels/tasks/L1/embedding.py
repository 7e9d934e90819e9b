"""embedding: rows of a table by index, the first operation of a language model.

A copy: nothing but the exact result is accepted."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.tasks.accuracy import EXACT
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes


class VocabParallelEmbedding(Interface):
    """Constructor and ``forward`` as vLLM's ``VocabParallelEmbedding`` on one device.

    Args:
        num_embeddings, embedding_dim: rows and columns of the table.
        padding_idx: the row that gets no gradient; ``forward`` reads it like any other.

    ``forward(ids)``: int64 of any shape to (*ids.shape, embedding_dim). State: ``weight`` (num_embeddings,
    embedding_dim), uninitialised.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight, self.padding_idx)


class Witness(VocabParallelEmbedding):
    """By selecting rows of the flattened ids."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight.index_select(0, ids.flatten()).reshape(*ids.shape, self.embedding_dim)


class ZeroesThePadding(VocabParallelEmbedding):
    """Cheat: takes the padding row, which may be trained, for zeros."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        padding = -1 if self.padding_idx is None else self.padding_idx
        return super().forward(ids) * (ids != padding)[..., None]


class DropsTheLastRow(VocabParallelEmbedding):
    """Cheat: one row short of the table."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids.clamp_max(self.num_embeddings - 2))


class RoundsTheRows(VocabParallelEmbedding):
    """Cheat: a table kept in bfloat16."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids).bfloat16().to(self.weight.dtype)


def cases() -> Iterator[Case]:
    """Ids of several shapes, first and last row, repeats, padding, none; Llama-3.1-8B's table."""

    def draw(rows: int, *shape: int) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            return (torch.randint(rows, shape, generator=g).to(device),)

        return arguments

    def ends(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        return (torch.tensor([[0, 96], [96, 0]], device=device),)

    table = {"num_embeddings": 97, "embedding_dim": 48}
    for name, shape in {"row": (7,), "batch": (2, 5), "scalar": (), "many": (3, 4, 50), "empty": (0,)}.items():
        yield Case(name=name, init=table, draw=draw(97, *shape))
    yield Case(name="ends", init=table, draw=ends)
    yield Case(name="padding", init={**table, "padding_idx": 0}, draw=ends)
    yield Case(name="odd_width", init={**table, "embedding_dim": 13}, draw=draw(97, 9))
    llama = {"num_embeddings": 128256, "embedding_dim": 4096}
    for tokens in (1, 64, 2048, 16384):
        yield Case(name=f"llama_{tokens}", init=llama, draw=draw(128256, tokens), production=True)


def cost(module: VocabParallelEmbedding, ids: torch.Tensor) -> Cost:
    """Ids read and output written once, and each row of the table that is asked for read once."""
    row = module.embedding_dim * module.weight.element_size()
    return Cost(bytes=element_bytes(ids) + (ids.numel() + ids.unique().numel()) * row, flops=0)


TASK = Task(
    name="embedding",
    level=1,
    family="embedding",
    interface=VocabParallelEmbedding,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(ZeroesThePadding, DropsTheLastRow, RoundsTheRows),
    accuracy=EXACT,
)
