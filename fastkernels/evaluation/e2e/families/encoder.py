"""Text encoders: sentence embeddings, and scores of query-item pairs as rerankers and recommenders give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.batched import BatchedFamily, field, widened
from fastkernels.evaluation.e2e.families.draws import Request, lengths, token_rows
from fastkernels.evaluation.e2e.families.family import Distance, Tensors
from fastkernels.evaluation.e2e.families.metrics import (
    cosine_distance,
    disagreement,
    rank_correlation,
    relative_l2,
    top_k_overlap,
)
from fastkernels.evaluation.e2e.workload import Workload

ITEMS = 16  # ranked for one query
TOP = 5


class Embedding(BatchedFamily):
    """Mean over the tokens of the last hidden states, brought to unit length."""

    names = ("Embedding",)
    category = "embedding"
    unit = "sentences"
    timed = ("pooled",)

    def default_workloads(self) -> Mapping[str, Workload]:
        batch = Workload(name="Embedding.batch", batch=32, requests=64, input_tokens=(128,))
        single = Workload(name="Embedding.single", batch=1, requests=16, input_tokens=(32,))
        return {w.name: w for w in (batch, single)}

    def draw(self, model: nn.Module, request: Request) -> dict[str, Tensor]:
        """Sentences of several lengths, padded on the right."""
        ids = token_rows(model, request, rows=request.rows, tokens=request.tokens, seed=request.seed)
        return padded(model, ids)

    def read(self, model: nn.Module, inputs: Tensors, raw: Any) -> dict[str, Tensor]:
        hidden = field(raw, "last_hidden_state")
        mask = inputs["attention_mask"].unsqueeze(-1)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        pooled = (hidden * mask.to(hidden.dtype)).sum(1, dtype=wide) / mask.sum(1)
        return {"pooled": pooled, "embedding": F.normalize(pooled, dim=-1)}

    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        return {
            "cosine distance": cosine_distance(outputs["embedding"], oracle["embedding"]),
            "relative l2": relative_l2(outputs["pooled"], oracle["pooled"]),
            "nearest neighbour": disagreement(similarities(outputs), similarities(oracle)),
        }


class Recommendation(BatchedFamily):
    """A score for each pair of a query and an item."""

    names = ("Recommendation",)
    category = "recommendation"
    unit = "pairs"
    timed = ("score",)

    def default_workloads(self) -> Mapping[str, Workload]:
        rank = Workload(name="Recommendation.rank", batch=32, requests=64, input_tokens=(128,))
        return {rank.name: rank}

    def draw(self, model: nn.Module, request: Request) -> dict[str, Tensor]:
        """A query of a quarter of the tokens before each of ``ITEMS`` items."""
        queries, length = -(-request.rows // ITEMS), request.tokens // 4
        query = token_rows(model, request, rows=queries, tokens=length, seed=request.seed)
        rest = request.tokens - length + 1
        items = token_rows(model, request, rows=request.rows, tokens=rest, seed=request.seed + 1)
        # The item's first token is the mark of a beginning, which the pair has already.
        inputs = padded(model, torch.cat([query.repeat_interleave(ITEMS, 0)[: request.rows], items[:, 1:]], 1))
        if getattr(model.config, "type_vocab_size", 0) > 1:
            second = (torch.arange(request.tokens) >= length).long().expand(request.rows, -1)
            inputs["token_type_ids"] = second * inputs["attention_mask"]
        return inputs

    def read(self, model: nn.Module, inputs: Tensors, raw: Any) -> dict[str, Tensor]:
        logits = field(raw, "logits", "scores")
        # Of several labels the last is the relevant one: its log-odds over the first.
        return {"score": logits.flatten() if logits.numel() == len(logits) else logits[:, -1] - logits[:, 0]}

    def rows(self, outputs: Tensors) -> Tensor:
        """The scores of a query's items as one vector: a single score near zero has no relative error."""
        return by_query(outputs["score"].double())

    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        ranked, wanted = by_query(outputs["score"]), by_query(oracle["score"])
        return {
            "score relative l2": relative_l2(outputs["score"], oracle["score"]),
            "rank correlation": rank_correlation(ranked, wanted),
            f"top-{TOP} overlap": top_k_overlap(ranked, wanted, k=TOP),
        }


def padded(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """Rows cut to ``lengths``, each with its last token at its new end, filled with the padding token; their mask."""
    length = lengths(*ids.shape).unsqueeze(1)
    mask = torch.arange(ids.shape[1]) < length
    pad = getattr(model.config, "pad_token_id", None) or 0
    ids = ids.scatter(1, length - 1, ids[:, -1:])
    return {"input_ids": torch.where(mask, ids, pad), "attention_mask": mask.long()}


def similarities(outputs: Tensors) -> Tensor:
    """Cosines between the rows, (rows, rows); a row is no neighbour of itself.

    Raises:
        EvaluationError: a single row has no neighbour.
    """
    unit = widened(outputs["embedding"])
    if len(unit) < 2:
        raise EvaluationError("embedding: one sentence has no neighbour; give a check_size of 2 or more.")
    return (unit @ unit.T).fill_diagonal_(-2)


def by_query(scores: Tensor) -> Tensor:
    """(rows,) as (queries, items); of an incomplete last query nothing, unless it is the only one."""
    whole = len(scores) // ITEMS * ITEMS
    return scores[:whole].view(-1, ITEMS) if whole else scores.view(1, -1)
