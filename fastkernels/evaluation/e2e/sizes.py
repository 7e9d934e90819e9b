"""The sizes of an entry's workloads: the family's defaults, the entry's overrides, cut to its token budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.family import Family
from fastkernels.evaluation.e2e.source import Strict
from fastkernels.evaluation.e2e.workload import Workload

if TYPE_CHECKING:
    from fastkernels.evaluation.e2e.scenario import Entry


class Sizes(Strict):
    """What a scenario overrides of a workload; the rest is the family's default."""

    batch: int | None = Field(default=None, ge=1)
    requests: int | None = Field(default=None, ge=1)
    input_tokens: tuple[int, ...] | None = None
    output_tokens: int | None = Field(default=None, ge=0)
    rate: float | None = Field(default=None, gt=0)
    size: tuple[int, ...] | None = None


def resolve(entry: Entry, family: Family) -> tuple[Workload, ...]:
    """The entry's workloads at their sizes: the family's defaults, the entry's overrides, cut to its token budget.

    Raises:
        EvaluationError: the family has no such workload, or the budget is too small for one request of each length.
    """
    known, workloads = family.default_workloads(), []
    for name in entry.workloads:
        if name not in known:
            raise EvaluationError(f"{entry.model}: there is no workload {name}; the family has {', '.join(known)}.")
        sizes = entry.sizes.get(name, Sizes()).model_dump(exclude_none=True)
        try:
            workload = Workload.model_validate(known[name].model_dump() | sizes)
        except ValidationError as error:
            raise EvaluationError(f"{entry.model}: sizes of {name}: {error.errors()[0]['msg']}") from None
        most = min(workload.batch, workload.requests, entry.max_num_seqs or workload.batch)
        workloads.append(workload.model_copy(update={"batch": most}))
    return tuple(workloads) if entry.token_budget is None else _within(entry, workloads, entry.token_budget)


def tokens(workload: Workload) -> int:
    """Prompt and generated tokens of one pass.

    >>> tokens(Workload(name="LLM.mixed", batch=2, requests=3, input_tokens=(8, 100), output_tokens=4))
    128
    """
    lengths = workload.input_tokens or (0,)
    sizes = [min(workload.batch, workload.requests - done) for done in range(0, workload.requests, workload.batch)]
    return sum(size * (lengths[i % len(lengths)] + workload.output_tokens) for i, size in enumerate(sizes))


def _within(entry: Entry, workloads: list[Workload], budget: int) -> tuple[Workload, ...]:
    """Takes requests from whichever workload has the most tokens; every length that was visited still is."""
    turns = [min(len(w.input_tokens) or 1, math.ceil(w.requests / w.batch)) for w in workloads]
    left = list(workloads)
    while (total := sum(map(tokens, left))) > budget:
        cuttable = [i for i, w in enumerate(left) if w.requests > turns[i]]
        if not cuttable:
            each = ", ".join(f"{w.name} {tokens(w)}" for w in left)
            raise EvaluationError(
                f"{entry.model}: token_budget {budget}: one request of each length is {total} tokens already ({each}). "
                f"Raise token_budget to {total}, or give shorter lengths in sizes."
            )
        i = max(cuttable, key=lambda i: tokens(left[i]))
        each_turn = math.ceil(left[i].requests / turns[i]) - 1
        cut = {"requests": each_turn * turns[i], "batch": min(workloads[i].batch, each_turn)}
        left[i] = left[i].model_copy(update=cut)
    return tuple(left)
