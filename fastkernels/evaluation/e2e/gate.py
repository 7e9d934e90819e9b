"""Correctness before speed: answers of the arms against an oracle's, which a process of its own gives first."""

from __future__ import annotations

from collections.abc import Sequence

from safetensors.torch import load_file

from fastkernels.evaluation.e2e.arm import ArmFailed
from fastkernels.evaluation.e2e.calibration import Judged, judge
from fastkernels.evaluation.e2e.contest import ANSWER_SECONDS, Contest
from fastkernels.evaluation.e2e.families.family import Tensors
from fastkernels.evaluation.e2e.journal import Answered, Gated
from fastkernels.evaluation.e2e.result import ArmName, Correctness


def answer_references(contest: Contest) -> None:
    """The oracle's and the control's answers; their process has ended before the arms need its memory."""
    oracle, control = (contest.files / f"{name}.safetensors" for name in ("oracle", "control"))
    done = any(isinstance(r, Answered) for r in contest.journal.records)
    if done and oracle.is_file() and control.is_file():
        return
    contest.tell("oracle and known-bad control")
    with contest.start("reference") as arm:
        told = arm.order("oracle", timeout=ANSWER_SECONDS, file=str(oracle))
        told |= arm.order("control", timeout=ANSWER_SECONDS, file=str(control))
    if not done:
        text = f"oracle: {told['oracle']}; control: {told['control']}"
        contest.journal.append(Answered(oracle=text, parameters=told["parameters"]))


def pass_gate(contest: Contest, modes: Sequence[str], *, after: bool = False) -> bool:
    """Judges the candidate in each of ``modes``, those in which the unpatched model runs; whether all are green.

    With ``after`` once more, in the process that was timed: what counts calls may have changed its mind.
    """
    judged = {c.mode for c in contest.journal.gated(after=after)}
    for mode in modes:
        if mode not in judged:
            contest.tell(f"correctness, {mode}")
            contest.journal.append(Gated(after=after, correctness=_judged(contest, mode)))
    return all(c.passed for c in contest.journal.gated(after=after))


def _judged(contest: Contest, mode: str) -> Correctness:
    names: tuple[ArmName, ...] = ("baseline", "candidate")
    files = {name: contest.files / f"{name}-{mode}.safetensors" for name in names}
    at_work = [name for name in names if name == "candidate" or not files[name].is_file()]
    oracle = next(r.oracle for r in contest.journal.records if isinstance(r, Answered))
    failure = contest.broken.get(("candidate", mode))
    if failure is None:
        for name in at_work:
            contest.arms[name].send("answer", mode=mode, file=str(files[name]))
        for name in at_work:
            try:
                contest.arms[name].reply(timeout=ANSWER_SECONDS)
            except ArmFailed as error:
                if name != "candidate" or not error.alive:
                    raise
                failure = error
    if failure is not None:
        reason = f"fails under {mode}: {failure.reason[:600]}"
        return Correctness(mode=mode, score=0.0, passed=False, reason=reason, oracle=oracle)
    outputs: dict[Judged, Tensors] = {
        "oracle": load_file(contest.files / "oracle.safetensors"),
        "control": load_file(contest.files / "control.safetensors"),
        "baseline": load_file(files["baseline"]),
        "candidate": load_file(files["candidate"]),
    }
    return judge(outputs, contest.family, mode=mode, oracle=oracle)
