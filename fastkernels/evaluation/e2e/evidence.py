"""After the rounds: whether timed outputs were right, what ran in each process, and what share of time it covers."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from fastkernels.evaluation.coverage.result import Coverage
from fastkernels.evaluation.e2e.arm import ArmFailed
from fastkernels.evaluation.e2e.contest import ANSWER_SECONDS, COMPILE_SECONDS, Contest, as_json
from fastkernels.evaluation.e2e.gate import baseline_answer, pass_gate
from fastkernels.evaluation.e2e.journal import Block, Checked, Covered, Ended
from fastkernels.evaluation.e2e.result import ARMS, ArmResult
from fastkernels.evaluation.e2e.timing import digest, timed_file
from fastkernels.evaluation.e2e.workload import Workload

CHECKS = 5  # timed blocks of a workload, beside the last, whose outputs are checked; drawn after the fact


def check_timed(contest: Contest) -> bool:
    """The unpatched model scores outputs of timed calls; then the gate once more. Whether the gate is green."""
    noise = _noise(contest)
    for block in _drawn(contest):
        contest.tell(f"outputs of timed calls, {block.workload}")
        file = timed_file(contest, block)
        if not block.outputs or digest(file) != block.outputs:
            tail = contest.arms["candidate"].tail()
            raise ArmFailed("candidate", f"{file.name}, outputs of a timed block, was changed or taken away", tail)
        told = contest.arms["baseline"].order(
            "plausible",
            timeout=ANSWER_SECONDS,
            mode=contest.mode("baseline"),
            workload=as_json(contest.by_name[block.workload]),
            file=str(file),
            noise=noise,
        )
        at = {"workload": block.workload, "round": block.round, "visit": block.visit}
        contest.journal.append(Checked.model_validate(at | told))
    for file in contest.files.glob("timed-*"):
        file.unlink()
    return pass_gate(contest, [contest.mode("candidate")], after=True)


def _noise(contest: Contest) -> float | None:
    """An engine gives no logits by which its session could find out."""
    if contest.spec.entry.engine == "hf":
        return None
    return contest.family.noise(baseline_answer(contest, contest.mode("baseline")), contest.answers["oracle"])


def _drawn(contest: Contest) -> Iterator[Block]:
    """The last timed block of the candidate on each workload, and some that it could not know of, as far as an earlier,
    killed run has not checked them. That run's outputs may be on another machine; those of this one must be there."""
    checked = [r for r in contest.journal.records if isinstance(r, Checked)]
    for workload in contest.by_name:
        done = {(r.workload, r.round, r.visit) for r in checked if r.workload == workload}
        own = [b for b in contest.journal.blocks().values() if b.arm == "candidate" and b.workload == workload]
        own.sort(key=lambda b: b.key)
        left = [b for b in own if b.key not in done and (b.key in contest.kept or timed_file(contest, b).is_file())]
        wanted = min(CHECKS + 1 - len(done), len(left))
        if wanted > 0:
            yield left[-1]
            left, wanted = left[:-1], wanted - 1
        yield from random.Random().sample(left, max(0, wanted))


def gather(contest: Contest) -> None:
    """From every process: what stands on its model, what showed in a window of real calls, memory and launches; from
    the baseline, the share of its time inside the modules that the candidate arm replaced."""
    ended = {r.arm for r in contest.journal.records if isinstance(r, Ended)}
    works, shortest = [as_json(w) for w in contest.workloads], as_json(min(contest.workloads, key=_length))
    for name in ARMS:
        if name in ended:
            continue
        contest.tell(f"evidence, {name}")
        arm, mode, loaded = contest.arms[name], contest.mode(name), contest.loaded[name]
        told = arm.order("evidence", timeout=COMPILE_SECONDS, mode=mode, workloads=works)
        facts = {
            "state": "finished",
            "mode": mode,
            "log": arm.log.name,
            "load_seconds": loaded["load_seconds"],
            "patch_seconds": loaded["patch_seconds"],
            "warmup_seconds": contest.warmup_seconds.get(name),
        }
        contest.journal.append(Ended(arm=name, result=ArmResult.model_validate({"patch": None} | told | facts)))
    if not any(isinstance(r, Covered) for r in contest.journal.records):
        contest.tell("coverage")
        reports = (r.result.patch for r in contest.journal.records if isinstance(r, Ended) and r.arm == "candidate")
        try:
            told = contest.arms["baseline"].order(
                "cover", timeout=ANSWER_SECONDS, report=as_json(next(reports)), workload=shortest
            )
        except ArmFailed as failure:  # speed and correctness stand without it
            contest.journal.append(Covered(coverage=None, reason=failure.reason))
        else:
            contest.journal.append(Covered(coverage=Coverage.model_validate(told)))


def _length(workload: Workload) -> int:
    """Decode steps of a pass, so that the profiler gets the shortest."""
    return workload.output_tokens * math.ceil(workload.requests / workload.batch)
