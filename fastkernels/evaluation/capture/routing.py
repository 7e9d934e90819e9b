"""How tokens are spread over experts: histograms by layer and phase, beside what uniform routing would give."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from fastkernels.evaluation.capture.record import Phase, Routing, Strict

TASK = "fused_experts"
IDS = "topk_ids"
SIMULATED = 64  # calls of one size that a simulation draws, at most
DRAWN = 1 << 16  # tokens that a simulation of one size draws, at most


@dataclass
class _Histogram:
    experts: int
    top_k: int
    load: torch.Tensor
    touched: int = 0
    peaks: int = 0
    sizes: Counter[int] = field(default_factory=Counter)


class RoutingCounter:
    """Counts the experts that each call chose."""

    def __init__(self) -> None:
        self._by: dict[tuple[str, Phase], _Histogram] = {}

    def add(self, path: str, phase: Phase, ids: torch.Tensor, experts: int | None) -> None:
        """Counts a call's ids, (tokens, top_k); ids below 0 are no choice."""
        flat = ids.detach().flatten()
        flat = flat[flat >= 0].to(torch.int64)
        counts = torch.bincount(flat, minlength=experts or 0).cpu()
        key = (path, phase)
        if key not in self._by:
            self._by[key] = _Histogram(len(counts), int(ids.shape[-1]), torch.zeros(len(counts), dtype=torch.int64))
        held = self._by[key]
        if len(counts) > held.experts:  # where nobody tells how many there are
            held.load = torch.cat([held.load, held.load.new_zeros(len(counts) - held.experts)])
            held.experts = len(counts)
        held.load[: len(counts)] += counts
        held.touched += int((counts > 0).sum())
        held.peaks += int(counts.max()) if len(counts) else 0
        held.sizes[int(ids.shape[0])] += 1

    def records(self) -> list[Routing]:
        """What was counted."""
        return [
            Routing(
                path=path,
                phase=phase,
                experts=h.experts,
                top_k=h.top_k,
                load=h.load.tolist(),
                touched=h.touched,
                peaks=h.peaks,
                call_sizes=dict(h.sizes),
            )
            for (path, phase), h in self._by.items()
        ]


def ids_in(task: str, arguments: dict[str, Any]) -> torch.Tensor | None:
    """The experts chosen, out of the arguments of a call: of the task, or of the host where the site is gated."""
    if task != TASK:
        return None
    found = arguments.get(IDS)
    if found is None:
        found = next((getattr(v, IDS) for v in arguments.values() if hasattr(v, IDS)), None)
    return found if isinstance(found, torch.Tensor) and found.dim() == 2 else None


class Comparison(Strict):
    """Captured routing beside uniform routing of as many tokens in as many calls."""

    path: str
    phase: Phase
    calls: int
    tokens: int
    experts: int
    skew: float
    uniform_skew: float
    call_skew: float
    uniform_call_skew: float
    touched: float
    uniform_touched: float


def compare(routing: Routing, *, seed: int = 0) -> Comparison:
    """Skew (most loaded expert over the mean) over all calls and of single calls, and distinct experts of a call;
    captured, and where each token picks ``top_k`` experts at random.

    >>> flat = Routing(path="moe", phase="prefill", experts=4, top_k=1, load=[64, 0, 0, 0], touched=1, peaks=64,
    ...                call_sizes={64: 1})
    >>> found = compare(flat)
    >>> found.skew, found.uniform_skew < 2
    (4.0, True)
    """
    generator = torch.Generator().manual_seed(seed)
    load = torch.zeros(routing.experts, dtype=torch.float64)
    touched = peaks = means = 0.0
    for size, calls in sorted(routing.call_sizes.items()):
        if not size:
            continue
        drawn = min(calls, max(1, min(SIMULATED, DRAWN // size)))
        rank = torch.rand(drawn, size, routing.experts, generator=generator)
        ids = rank.topk(min(routing.top_k, routing.experts), dim=-1).indices.flatten(1)
        counts = torch.zeros(drawn, routing.experts).scatter_add_(1, ids, torch.ones(ids.shape))
        weight = calls / drawn
        # Independent calls of one size: the sum of all has the mean of those drawn and their share of its noise.
        load += counts.sum(0).double() * weight if drawn == calls else _summed(counts, calls, generator)
        touched += float((counts > 0).sum()) * weight
        peaks += float(counts.max(dim=1).values.sum()) * weight
    means = routing.tokens * routing.top_k / routing.experts
    return Comparison(
        path=routing.path,
        phase=routing.phase,
        calls=routing.calls,
        tokens=routing.tokens,
        experts=routing.experts,
        skew=routing.skew,
        uniform_skew=float(load.max()) * routing.experts / max(float(load.sum()), 1.0),
        call_skew=routing.peaks / max(means, 1e-9),
        uniform_call_skew=peaks / max(means, 1e-9),
        touched=routing.touched / max(routing.calls, 1),
        uniform_touched=touched / max(routing.calls, 1),
    )


def _summed(counts: torch.Tensor, calls: int, generator: torch.Generator) -> torch.Tensor:
    """The summed load of ``calls`` calls, each one of those drawn."""
    picks = torch.randint(len(counts), (calls,), generator=generator)
    return counts[picks].sum(0).double()


def ids_like(routing: Routing, tokens: int, top_k: int, generator: torch.Generator) -> torch.Tensor:
    """(tokens, top_k) int64: each token's distinct experts, drawn by the captured load."""
    weights = torch.tensor(routing.load, dtype=torch.float64) + 1e-3
    if not tokens:
        return torch.empty(0, top_k, dtype=torch.int64)
    return torch.multinomial(weights.expand(tokens, -1), top_k, generator=generator)
