"""What a call takes, roughly, decides how many a batch has: one hiccup must not make calls look short."""

from __future__ import annotations

import dataclasses

import pytest

from fastkernels.evaluation.bench.replies import RunnerFailed
from tests.evaluation.bench.walked import InProcess, in_process, own, recorded


class Hiccups(InProcess):
    """Batches take a millisecond and ten microseconds a call, but for those without calls ``which`` take a second."""

    empties, which = 0, {0, 1}

    def timed(self, slots, *, paced=False):
        batch = super().timed([], paced=paced)
        self.empties += not slots
        hiccup = not slots and self.empties % 2 in self.which
        return dataclasses.replace(batch, calls=len(slots), wall=1.0 if hiccup else 1e-3 + 1e-5 * len(slots))


class HiccupsFirst(Hiccups):
    which = {1}


class HiccupsSecond(Hiccups):
    which = {0}


@pytest.mark.parametrize(
    ("kind", "seconds"), [(HiccupsFirst, 1e-5), (HiccupsSecond, 1e-5), (Hiccups, (1e-3 + 16e-5) / 16 / 10)]
)
def test_hiccups_without_calls_do_not_make_calls_short(memory, kind, seconds):
    made = in_process(memory, "relu", recorded(own), 16, kind=kind)
    assert made.estimates()["suspect"] == pytest.approx(seconds)


def test_a_baseline_that_fails_without_calls_leaves(memory):
    class Fails(InProcess):
        def timed(self, slots, *, paced=False):
            if not slots and self.capture is failing:
                raise RunnerFailed("CALL_ERROR", "no batch of nothing")
            return dataclasses.replace(super().timed([], paced=paced), calls=len(slots))

    failing = recorded(own)
    made = in_process(memory, "relu", recorded(own), 16, trusted=failing, kind=Fails)
    assert set(made.estimates()) == set(made.runners) == {"suspect"}
    assert "trusted left out of graph mode" in made.notes[0]
