"""How far log probabilities of an engine are from an oracle's, where each tells its likeliest tokens only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.family import Distance, Tensors
from fastkernels.evaluation.e2e.families.llm import perplexity

OFTEN = 0.95
LEAST = 1e-9  # probability that a bucket is given: what float32 makes of none


def distances_of(part: str, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
    """Of one part of an answer, ``prompt`` or ``step``: KL of the oracle's likeliest tokens, log probability of the
    targets, likeliest token, five likeliest, perplexity.

    Raises:
        EvaluationError: it is of other texts, has other shapes, or a value is not finite.
    """
    own, known = _taken(part, outputs), _taken(part, oracle)
    for name, tensor in own.items():
        if tensor.shape != known[name].shape:
            raise EvaluationError(
                f"{part}_{name}: shape {tuple(tensor.shape)}, the oracle's is {tuple(known[name].shape)}"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            wrong = int((~tensor.isfinite()).sum())
            raise EvaluationError(f"{part}_{name}: {wrong} of {tensor.numel()} values are not finite")
    if not torch.equal(own["targets"], known["targets"]):
        raise EvaluationError(f"{part}_targets: not the tokens that the oracle was asked for")
    gap = own["target_logprobs"] - known["target_logprobs"]
    five = _missing(own["top_ids"][..., :5], known["top_ids"][..., :5])
    apart = (own["top_ids"][..., 0] != known["top_ids"][..., 0]).double()
    found = {
        "kl": _continuous(kl_of_top(own["top_ids"], own["top_logprobs"], known["top_ids"], known["top_logprobs"])),
        "target": _continuous(gap.square().mean().sqrt().item()),
        "argmax": Distance(value=apart.mean().item(), shown=1 - apart.mean().item(), trials=apart.numel()),
        "top5": Distance(value=five.mean().item(), shown=1 - five.mean().item(), trials=five.numel()),
    }
    if part == "prompt":
        found["perplexity"] = perplexity(-own["target_logprobs"], -known["target_logprobs"])
    return {f"{part}_{name}": distance for name, distance in found.items()}


def kl_of_top(ids: Tensor, logprobs: Tensor, oracle_ids: Tensor, oracle_logprobs: Tensor) -> float:
    """Mean KL(oracle || candidate) in nats over the oracle's likeliest tokens that the candidate tells too, one bucket
    of those that it does not, and one of all others.

    The second bucket's share is unknown but for a bound, what the candidate's own likeliest leave; it is taken to be as
    near to the oracle's as that allows. So the value is never more than the true one, and not 0 where the two tell
    other tokens. Shapes (..., k), float64 log probabilities.

    >>> one, two = torch.tensor([[1, 2]]), torch.tensor([[0.5, 0.25]]).double().log()
    >>> kl_of_top(one, two, one, two)
    0.0
    """
    same = oracle_ids.unsqueeze(-1) == ids.unsqueeze(-2)  # (..., oracle's, candidate's)
    told = same.any(-1)
    value = torch.where(same, logprobs.unsqueeze(-2), -torch.inf).amax(-1)
    value = torch.where(told, value, oracle_logprobs)
    wanted = oracle_logprobs.exp()
    known = torch.where(told, wanted, 0.0)
    missing, rest = (wanted - known).sum(-1), (1 - wanted.sum(-1)).clamp_min(LEAST)
    left = (1 - torch.where(told, value.exp(), 0.0).sum(-1)).clamp_min(2 * LEAST)
    most = (1 - logprobs.exp().sum(-1)).clamp_min(LEAST)
    own_missing = torch.minimum(left * missing / (missing + rest), most).clamp_min(LEAST)
    own_rest = (left - own_missing * (missing > 0)).clamp_min(LEAST)
    missing_gap = torch.where(missing > 0, own_missing.log() - missing.clamp_min(LEAST).log(), 0.0)
    gaps = torch.cat([value - oracle_logprobs, torch.stack([missing_gap, own_rest.log() - rest.log()], -1)], -1)
    weights = torch.cat([known, torch.stack([missing, rest], -1)], -1)
    # sum p (e^g - 1 - g) is the same sum, with no term below 0: nothing cancels where the two nearly agree.
    return (weights * (gaps.expm1() - gaps)).sum(-1).mean().item()


def noise_of(parts: Sequence[str], outputs: Tensors, oracle: Tensors) -> float:
    """How far log probabilities are from the oracle's in one place, as a root mean square over the tokens that both
    tell: of all places, that of which only ``1 - OFTEN`` are further off."""
    places = []
    for part in parts:
        own, known = _taken(part, outputs), _taken(part, oracle)
        same = own["top_ids"].unsqueeze(-1) == known["top_ids"].unsqueeze(-2)
        gaps = (own["top_logprobs"].unsqueeze(-1) - known["top_logprobs"].unsqueeze(-2)).where(same, 0.0)
        places.append((gaps.square().sum((-1, -2)) / same.sum((-1, -2)).clamp_min(1)).sqrt().flatten())
    return torch.cat(places).quantile(OFTEN).item()


def _taken(part: str, tensors: Tensors) -> dict[str, Tensor]:
    names = ("top_ids", "top_logprobs", "target_logprobs", "targets")
    found = {name: tensors[f"{part}_{name}"] for name in names}
    return {name: t.double() if t.is_floating_point() else t for name, t in found.items()}


def _missing(ids: Tensor, wanted: Tensor) -> Tensor:
    return (~(wanted.unsqueeze(-1) == ids.unsqueeze(-2)).any(-1)).double()


def _continuous(value: float) -> Distance:
    return Distance(value=value, shown=value)
