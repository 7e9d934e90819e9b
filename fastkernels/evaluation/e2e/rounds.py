"""The order in which arms visit workloads: ABBA within a round, arms in another order from round to round."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from fastkernels.evaluation.e2e.result import ARMS, ArmName


def visits(workloads: Sequence[str], *, rounds: int, seed: int) -> Iterator[tuple[int, str, int, ArmName]]:
    """Yields ``(round, workload, visit, arm)``; every arm is visited twice a round, so that a drift falls on all alike.

    >>> [(r, visit, arm) for r, _, visit, arm in visits(["LLM.mixed"], rounds=1, seed=1)][:3]
    [(0, 0, 'null'), (0, 1, 'candidate'), (0, 2, 'baseline')]
    """
    rng = random.Random(seed)
    for number in range(rounds):
        for workload in workloads:
            order = list(ARMS)
            rng.shuffle(order)
            for visit, arm in enumerate([*order, *reversed(order)]):
                yield number, workload, visit, arm
