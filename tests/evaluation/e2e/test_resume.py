"""A run killed at any point goes on where it was: no block lost, none run twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from fastkernels.evaluation.e2e.journal import Block, Journal, Tried
from tests.evaluation.e2e.tiny_scenario import CANDIDATES, scenario_file

ROUNDS = 5


def start(tmp_path):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fastkernels.cli.main",
            "eval",
            str(scenario_file(tmp_path, rounds=ROUNDS)),
            *("--candidates", str(CANDIDATES / "right"), "--out", str(tmp_path / "run")),
            *("--device", "cpu", "--threads", "1"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def blocks(records):
    return [r for r in records if isinstance(r, Block)]


POINTS = {
    "before the first block": lambda records: any(isinstance(r, Tried) for r in records),
    "between blocks": lambda records: len(blocks(records)) >= 13,
    "after the last block": lambda records: len(blocks(records)) >= 6 * ROUNDS,
}


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=() if p == "between blocks" else pytest.mark.slow) for p in POINTS]
)
def test_a_killed_run_is_finished_with_the_same_blocks(tmp_path, point):
    file = tmp_path / "run" / "00-tiny-llama" / "records.jsonl"
    process, limit = start(tmp_path), time.monotonic() + 200
    try:
        while not (file.is_file() and file.read_bytes() and POINTS[point](Journal(copy_of(file)).records)):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < limit
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    kept = whole_lines(file)
    again = start(tmp_path)
    out, _ = again.communicate(timeout=200)
    assert again.returncode == 0, out
    assert whole_lines(file)[: len(kept)] == kept
    keys = [b.key for b in blocks(Journal(file).records)]
    assert len(keys) == len(set(keys)) == 6 * ROUNDS
    assert (tmp_path / "run" / "result.json").is_file()


def whole_lines(file):
    content = file.read_bytes()
    return content[: content.rfind(b"\n") + 1].splitlines()


def copy_of(file):
    """Opening a journal cuts off a torn line, which here may still be in the writing."""
    copied = file.with_suffix(".seen")
    copied.write_bytes(file.read_bytes())
    return copied
