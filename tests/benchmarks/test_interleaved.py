"""Interleaved timing: the order is ABBA, and the interval behaves."""

import random

from benchmarks.interleaved import Timings, interleave


def test_order_is_abba_after_the_warmup():
    seen = []
    interleave({name: (lambda name=name: seen.append(name)) for name in "abc"}, rounds=2, warmup=1)
    assert "".join(seen) == "abc" + "abccba" * 2


def test_clock_is_read_after_synchronising():
    events = []
    interleave({"a": lambda: events.append("call")}, rounds=1, warmup=0, synchronize=lambda: events.append("sync"))
    assert events == ["sync", "call", "sync"] * 2


def drawn(scale, rng):
    return [[scale * (1 + rng.gauss(0, 0.05)) for _ in range(2)] for _ in range(20)]


def test_interval_holds_the_true_ratio_about_as_often_as_it_says():
    held = 0
    for seed in range(40):
        rng = random.Random(seed)
        low, ratio, high = Timings(seconds={"a": drawn(2.0, rng), "b": drawn(1.0, rng)}).speedup("a", "b")
        assert low <= ratio <= high
        held += low <= 2.0 <= high
    assert held >= 35


def test_noise_shared_by_a_round_cancels():
    rounds = drawn(1.0, random.Random(4))
    slow = [[t * (3 if i % 5 == 0 else 1) for t in calls] for i, calls in enumerate(rounds)]
    low, _, high = Timings(seconds={"a": slow, "b": slow}).speedup("a", "b")
    assert (low, high) == (1.0, 1.0)
