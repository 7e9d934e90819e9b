"""The order of visits gives every arm the same share of any drift."""

from __future__ import annotations

from collections import Counter

from fastkernels.evaluation.e2e.result import ARMS
from fastkernels.evaluation.e2e.rounds import visits


def test_a_round_is_a_palindrome_in_which_every_arm_stands_twice():
    plan = list(visits(["A.a", "A.b"], rounds=5, seed=3))
    for number in range(5):
        for workload in ("A.a", "A.b"):
            arms = [arm for r, w, _, arm in plan if (r, w) == (number, workload)]
            assert arms == arms[::-1]
            assert Counter(arms) == dict.fromkeys(ARMS, 2)


def test_no_arm_is_always_first():
    first = {arm for _, _, visit, arm in visits(["A.a"], rounds=20, seed=0) if visit == 0}
    assert first == set(ARMS)


def test_the_order_is_the_seeds_so_that_a_killed_run_goes_on_in_it():
    assert list(visits(["A.a"], rounds=9, seed=4)) == list(visits(["A.a"], rounds=9, seed=4))
    assert list(visits(["A.a"], rounds=9, seed=4)) != list(visits(["A.a"], rounds=9, seed=5))
