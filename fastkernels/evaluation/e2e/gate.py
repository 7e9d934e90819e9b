"""Correctness before speed: answers of the arms against an oracle's, which a process of its own gives first.

Answers to compare with are held here, and not on the disk, while the candidate's process runs: it could read them
there, or write to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.arm import ArmFailed
from fastkernels.evaluation.e2e.calibration import judge
from fastkernels.evaluation.e2e.contest import ANSWER_SECONDS, Contest
from fastkernels.evaluation.e2e.families.family import Tensors
from fastkernels.evaluation.e2e.journal import Answered, Gated
from fastkernels.evaluation.e2e.result import Correctness


def answer_references(contest: Contest) -> None:
    """The oracle's and the control's answers; their process has ended before the arms need its memory."""
    contest.tell("oracle and known-bad control")
    files = {name: contest.files / f"{name}.safetensors" for name in ("oracle", "control")}
    with contest.start("reference") as arm:
        told = arm.order("oracle", timeout=ANSWER_SECONDS, file=str(files["oracle"]))
        told |= arm.order("control", timeout=ANSWER_SECONDS, file=str(files["control"]))
    contest.answers |= {name: taken(file) for name, file in files.items()}
    if last_answered(contest) is None:
        text = f"oracle: {told['oracle']}; control: {told['control']}"
        contest.journal.append(Answered(oracle=text, parameters=told["parameters"]))


def last_answered(contest: Contest) -> Answered | None:
    """The record of the reference process."""
    return next((r for r in reversed(contest.journal.records) if isinstance(r, Answered)), None)


def taken(file: Path) -> Tensors:
    """The tensors of a file, which is gone afterwards.

    Raises:
        EvaluationError: it is missing, or holds no tensors.
    """
    try:
        tensors = load(file.read_bytes())
        file.unlink()
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise EvaluationError(f"{file.name}: no tensors in it ({error})") from None
    return tensors


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


def baseline_answer(contest: Contest, mode: str) -> Tensors:
    """The unpatched model's answer in a mode, which is asked for once."""
    if mode not in contest.answers:
        own = contest.files / f"baseline-{mode}.safetensors"
        contest.arms["baseline"].order("answer", timeout=ANSWER_SECONDS, mode=mode, file=str(own))
        contest.answers[mode] = taken(own)
    return contest.answers[mode]


def _judged(contest: Contest, mode: str) -> Correctness:
    answered = last_answered(contest)
    if answered is None:
        raise EvaluationError(f"{contest.journal.file}: no oracle has answered. Evaluate anew.")
    failed = Correctness(mode=mode, score=0.0, passed=False, oracle=answered.oracle)
    broken = contest.broken.get(("candidate", mode))
    if broken is not None:
        return failed.model_copy(update={"reason": f"fails under {mode}: {broken.reason[:600]}"})
    file = contest.files / "candidate.safetensors"
    contest.arms["candidate"].send("answer", mode=mode, file=str(file))  # both compile at the same time
    baseline_answer(contest, mode)
    try:
        contest.arms["candidate"].reply(timeout=ANSWER_SECONDS)
        answer = taken(file)
    except ArmFailed as error:
        if not error.alive:
            raise
        return failed.model_copy(update={"reason": f"fails under {mode}: {error.reason[:600]}"})
    except EvaluationError as error:
        return failed.model_copy(update={"reason": f"gave no answer under {mode}: {error}"})
    known = contest.answers
    outputs = {"oracle": known["oracle"], "control": known["control"], "baseline": known[mode], "candidate": answer}
    return judge(outputs, contest.family, mode=mode, oracle=answered.oracle)  # type: ignore[arg-type] # its four keys
