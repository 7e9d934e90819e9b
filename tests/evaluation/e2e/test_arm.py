"""An arm that dies, hangs or raises is told apart, in time, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import time

import pytest

from fastkernels.evaluation.e2e.arm import Arm, ArmFailed
from fastkernels.evaluation.e2e.setup import Setup
from tests.evaluation.e2e.tiny_scenario import scenario


@pytest.fixture
def arm(tmp_path):
    (entry,) = scenario(tmp_path).entries
    with Arm(Setup(role="baseline", entry=entry, device="cpu", threads=1), tmp_path) as started:
        yield started


def test_what_an_arm_raises_is_its_reason_and_it_lives_on(arm):
    with pytest.raises(ArmFailed, match=r"KeyError: 'LLM\.none'") as failed:
        arm.order("keep", timeout=120, workload="LLM.none", at=0, file="x")
    assert failed.value.alive
    assert arm.order("settle", timeout=60) == {}
    assert "Traceback" in arm.tail()


def test_an_arm_that_dies_is_told_with_its_signal_and_one_that_hangs_with_the_limit(arm):
    arm.order("settle", timeout=120)
    os.kill(arm._process.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(ArmFailed, match="no reply to 'settle' within 1 s: it hangs") as failed:
        arm.order("settle", timeout=1)
    assert time.monotonic() - started < 10
    assert not failed.value.alive
    assert arm._process.poll() == -signal.SIGKILL


def test_an_arm_killed_from_outside_says_by_what(arm):
    arm.order("settle", timeout=120)
    os.kill(arm._process.pid, signal.SIGKILL)
    with pytest.raises(ArmFailed, match="died in 'settle' of signal SIGKILL"):
        arm.order("settle", timeout=30)
