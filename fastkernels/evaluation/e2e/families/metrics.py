"""Distances of outputs to an oracle's, shared by the families. Every function takes float tensors of equal shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.family import Distance

BLOCK = 1 << 22  # values taken to float64 at a time: 32 MiB
INF = math.inf


def cosine_distance(values: Tensor, oracle: Tensor) -> Distance:
    """Mean over rows of ``1 - cos``; shown as the mean cosine. Shapes (..., features).

    >>> cosine_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).value
    1.0
    """

    def block(a: Tensor, b: Tensor) -> Tensor:
        # Half the squared distance of unit vectors: 1 - cos itself has no digits left where the two nearly agree.
        unit_a, unit_b = (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-300) for x in (a, b))
        return (unit_a - unit_b).square().sum(-1) / 2

    value = _mean(block, values, oracle)
    return Distance(value=value, shown=1 - value)


def relative_l2(values: Tensor, oracle: Tensor) -> Distance:
    """Norm of the difference over the oracle's norm, over all values.

    >>> relative_l2(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])).value
    0.8
    """
    wrong = norm = 0.0
    for a, b in _blocks(values.reshape(-1, 1), oracle.reshape(-1, 1), "relative_l2"):
        wrong += (a - b).square().sum().item()
        norm += b.square().sum().item()
    value = math.sqrt(wrong) / math.sqrt(norm) if norm else (INF if wrong else 0.0)
    return Distance(value=value, shown=value)


def kl_divergence(logits: Tensor, oracle: Tensor) -> Distance:
    """Mean over rows of KL(oracle || candidate) in nats, of the softmax over the last dimension.

    >>> kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])).value
    0.0
    """

    def block(a: Tensor, b: Tensor) -> Tensor:
        log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
        gap = log_a - log_b
        # sum p (e^g - 1 - g) is the same sum, with no term below 0: nothing cancels where the two nearly agree.
        return (log_b.exp() * (gap.expm1() - gap)).sum(-1)

    value = _mean(block, logits, oracle)
    return Distance(value=value, shown=value)


def disagreement(logits: Tensor, oracle: Tensor) -> Distance:
    """Share of rows whose greatest value is at another place than the oracle's; shown as the agreement.

    >>> disagreement(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])).value
    0.5
    """
    _check(logits, oracle, "disagreement")
    wrong = logits.argmax(-1) != oracle.argmax(-1)
    value = wrong.double().mean().item()
    return Distance(value=value, shown=1 - value, trials=wrong.numel())


def top_k_overlap(values: Tensor, oracle: Tensor, *, k: int = 5) -> Distance:
    """Share of the oracle's ``k`` greatest of each row that are not among the row's own; shown as the overlap.

    >>> top_k_overlap(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[3.0, 1.0, 2.0]]), k=2).shown
    0.5
    """
    _check(values, oracle, "top_k_overlap")
    k = min(k, values.shape[-1])
    of, wanted = (x.topk(k, dim=-1).indices for x in (values, oracle))
    missing = ~(wanted.unsqueeze(-1) == of.unsqueeze(-2)).any(-1)
    value = missing.double().mean().item()
    return Distance(value=value, shown=1 - value, trials=missing.numel())


def psnr(values: Tensor, oracle: Tensor) -> Distance:
    """Root mean squared error over the oracle's range; shown as the peak signal-to-noise ratio in dB (300 at most).

    >>> round(psnr(torch.tensor([0.0, 0.9]), torch.tensor([0.0, 1.0])).shown, 2)
    23.01
    """
    wrong = _mean(lambda a, b: (a - b).square().sum(-1), values.reshape(-1, 1), oracle.reshape(-1, 1))
    peak = (oracle.max() - oracle.min()).double().item()
    value = math.sqrt(wrong) / peak if peak else (INF if wrong else 0.0)
    return Distance(value=value, shown=-20 * math.log10(value) if value > 1e-15 else 300.0)


def rank_correlation(values: Tensor, oracle: Tensor) -> Distance:
    """Share of pairs within a row that the two order differently; shown as Kendall's tau. Shapes (..., items).

    Pairs that are equal in the oracle are not asked. Time and memory are quadratic in the items of a row.

    >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])).shown
    0.33333333333333337
    """
    _check(values, oracle, "rank_correlation")
    items = values.shape[-1]
    above, below = torch.triu_indices(items, items, offset=1).unbind()
    wrong = asked = 0
    for a, b in zip(values.reshape(-1, items), oracle.reshape(-1, items), strict=True):
        order, wanted = ((x[above] - x[below]).sign() for x in (a, b))
        counted = wanted != 0
        asked += int(counted.sum())
        wrong += int((order != wanted)[counted].sum())
    value = wrong / asked if asked else 0.0
    # The pairs of one item stand or fall together: there are as many independent questions as items.
    return Distance(value=value, shown=1 - 2 * value, trials=values.numel())


def wer(tokens: Sequence[Tensor], oracle: Sequence[Tensor]) -> Distance:
    """Error rate of sequences of tokens: edits (substitution, insertion, deletion) over the oracle's length.

    ``tokens`` and ``oracle``: integer tensors of shape (rows, length), or lists of vectors.

    >>> wer([torch.tensor([1, 2, 3])], [torch.tensor([1, 3])]).value
    0.5
    """
    if len(tokens) != len(oracle):
        raise EvaluationError(f"wer: {len(tokens)} sequences against the oracle's {len(oracle)}")
    words = sum(len(row) for row in oracle)
    edits = sum(_edits(a.tolist(), b.tolist()) for a, b in zip(tokens, oracle, strict=True))
    value = edits / words if words else float(edits > 0)
    # Decoding that parts once stays apart: there are as many independent questions as sequences.
    return Distance(value=value, shown=value, trials=len(oracle))


def _edits(row: list[int], wanted: list[int]) -> int:
    """Levenshtein distance."""
    before = list(range(len(wanted) + 1))
    for i, token in enumerate(row, 1):
        now = [i]
        for j, other in enumerate(wanted, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (token != other)))
        before = now
    return before[-1]


def _mean(block: Callable[[Tensor, Tensor], Tensor], values: Tensor, oracle: Tensor) -> float:
    total, rows = 0.0, 0
    for a, b in _blocks(values, oracle, block.__qualname__.partition(".")[0]):
        part = block(a, b)
        total += part.sum().item()
        rows += part.numel()
    return total / rows


def _blocks(values: Tensor, oracle: Tensor, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows in float64, few at a time."""
    _check(values, oracle, name)
    width = values.shape[-1]
    rows = max(1, BLOCK // width)
    for a, b in zip(values.reshape(-1, width).split(rows), oracle.reshape(-1, width).split(rows), strict=True):
        yield a.double(), b.double()


def _check(values: Tensor, oracle: Tensor, name: str) -> None:
    if values.shape != oracle.shape:
        raise EvaluationError(f"{name}: outputs of shape {tuple(values.shape)}, the oracle's {tuple(oracle.shape)}")
    if not values.numel():
        raise EvaluationError(f"{name}: outputs are empty, shape {tuple(values.shape)}")
    wrong = int((~values.isfinite() & oracle.isfinite()).sum())
    if wrong:
        raise EvaluationError(f"{name}: {wrong} of {values.numel()} values are not finite where the oracle's are")
