"""The timed blocks: arms visit workloads in turn, this process holds the clock, and each block is on disk at once."""

from __future__ import annotations

import hashlib
import math
import secrets
from pathlib import Path

from pydantic import ValidationError

from fastkernels.evaluation.e2e.arm import ArmFailed
from fastkernels.evaluation.e2e.contest import ANSWER_SECONDS, Contest, as_json
from fastkernels.evaluation.e2e.journal import Block, Tried
from fastkernels.evaluation.e2e.readings import Readings
from fastkernels.evaluation.e2e.result import ArmName
from fastkernels.evaluation.e2e.rounds import visits

PATIENCE, FLOOR_SECONDS = 50.0, 60.0  # a block may take so many times the expected, and this at least
AGAIN = 3  # times that a visit is made while the device throttles
TIMES_KEPT = 512  # of the decode steps of one block


def run_rounds(contest: Contest, baseline: Tried) -> None:
    """All rounds; what an earlier, killed run finished is not run again.

    Raises:
        ArmFailed: an arm raised, died or hung.
    """
    done, entry = contest.journal.blocks(), contest.spec.entry
    plan = list(visits(list(contest.by_name), rounds=entry.rounds, seed=entry.seed))
    with Readings(contest.spec.device) as readings:
        for i, (number, workload, visit, name) in enumerate(plan):
            contest.tell(f"round {number + 1} of {entry.rounds}, {workload}", done=i, total=len(plan))
            if (workload, number, visit) in done:
                continue
            for _ in range(AGAIN):
                block = _visit(contest, readings, baseline, name, workload, number, visit)
                if name == "candidate":
                    file = timed_file(contest, block)
                    at = secrets.randbelow(block.passes)  # drawn when the passes are over
                    contest.arms[name].order("keep", timeout=ANSWER_SECONDS, workload=workload, at=at, file=str(file))
                    block.outputs = digest(file)
                    contest.kept.add(block.key)
                contest.journal.append(block)
                if not block.rejected:
                    break


def digest(file: Path) -> str:
    """Of a file's content; nothing of a file that is not there."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def timed_file(contest: Contest, block: Block) -> Path:
    """Where the outputs of a timed block lie until they are checked."""
    return contest.files / f"timed-{block.workload}-{block.round}-{block.visit}.safetensors"


def _visit(
    contest: Contest, readings: Readings, baseline: Tried, name: ArmName, workload: str, number: int, visit: int
) -> Block:
    passes = baseline.passes[workload]
    expected = passes * next(t.seconds[workload] for t in baseline.trials if t.chosen)
    with contest.alone(name) as arm:
        told = arm.order(
            "block",
            timeout=max(FLOOR_SECONDS, PATIENCE * expected),
            mode=contest.mode(name),
            workload=as_json(contest.by_name[workload]),
            passes=passes,
        )
    reading = readings.between(arm.started, arm.ended, group=f"{name} {workload}")
    try:
        return Block(
            workload=workload,
            round=number,
            visit=visit,
            arm=name,
            passes=passes,
            seconds=arm.seconds / passes,
            requests=told["requests"],
            tokens=told["tokens"],
            latency_ms=told["latency_ms"],
            ttft_ms=told["ttft_ms"],
            tpot_ms=told["tpot_ms"][:: max(1, math.ceil(len(told["tpot_ms"]) / TIMES_KEPT))],
            elapsed_ms=told["elapsed_ms"],
            megahertz=reading.megahertz,
            watts=reading.watts,
            celsius=reading.celsius,
            joules=reading.joules,
            rejected=reading.throttled if contest.spec.entry.reject_busy else "",
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise ArmFailed(arm.role, f"its reply to 'block' is none: {str(error)[:300]}", arm.tail()) from None
