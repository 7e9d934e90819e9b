"""What times say against a candidate: work after the clock, more processors than it was given, clocks that differ."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import torch

from fastkernels.evaluation.bench.result import Failure

if TYPE_CHECKING:
    from fastkernels.evaluation.bench.timed import Bed
    from fastkernels.evaluation.bench.times import Contest

# What a difference must exceed to be held against a candidate.
LATE_SHARE, LATE_SECONDS = 0.15, 1e-3
CPUS_SLACK = 1.5
EVENTS_SHARE, EVENTS_LEAST_SECONDS = 0.8, 2e-3
WHERE = "timed calls"


def suspicions(bed: Bed, contest: Contest, suspect: str, trusted: str) -> list[Failure]:
    """Failures that these rounds suggest; the caller measures again before it believes them."""
    mine, other = contest.times[suspect], contest.times[trusted]
    found = []
    calls = mine.batches[0].calls
    usual = statistics.median(other.collect)
    late = statistics.median(mine.collect) - usual
    if late > LATE_SECONDS + usual + LATE_SHARE * calls * statistics.median(other.per_call(contest.fixed)):
        detail = f"handing over the outputs of {calls} calls took {late * 1e6:.0f} us longer than the reference's"
        found.append(Failure(code="LATE_WORK", where=WHERE, detail=detail))
    if bed.site.device.type == "cpu":
        busy = statistics.median(b.cpu / b.wall for b in mine.batches)
        if busy > CPUS_SLACK * torch.get_num_threads():
            detail = f"{busy:.1f} CPUs were busy, it was given {torch.get_num_threads()}"
            found.append(Failure(code="CLOCK_MISMATCH", where=WHERE, detail=detail))
        return found
    busy = statistics.median(mine.drained) - statistics.median(other.drained)
    if busy > LATE_SECONDS:
        detail = f"after the batch the device was busy for {busy * 1e6:.0f} us longer than after the reference's"
        found.append(Failure(code="LATE_WORK", where=WHERE, detail=detail))
    spans = [b.wall - contest.fixed for b in mine.batches]  # of little more than what a batch costs nothing follows
    if statistics.median(spans) > EVENTS_LEAST_SECONDS:
        share = statistics.median(
            (b.events or 0.0) / s if s > 0 else 1.0 for b, s in zip(mine.batches, spans, strict=True)
        )
        if not share >= EVENTS_SHARE:  # also where it is no number
            detail = f"CUDA events told {share:.0%} of the wall clock's time: work beside the current stream"
            found.append(Failure(code="CLOCK_MISMATCH", where=WHERE, detail=detail))
    return found
