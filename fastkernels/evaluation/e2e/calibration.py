"""Correctness in [0, 1]: a distance to the oracle, placed between production's own and that of a known-bad control."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.family import Distance, Family, Tensors
from fastkernels.evaluation.e2e.result import Correctness, Metric

# A candidate rounds at other places than the baseline. Measured on a 7M-parameter Llama in bfloat16, KL over that of
# production: attention written out 1.3 to 1.4, weights through int8 1.7 to 2.3.
SLACK = 1.5
SEPARATION = 4.0  # below this, between slack and control, a metric cannot tell right from wrong
GATE = 0.5  # half way, in orders of magnitude, between production's own error and the control's
DEVIATIONS = 1.645  # one-sided 95%
EQUAL = 1e-12  # of the control's distance: what counts as no distance, where the baseline is the oracle

Judged = Literal["oracle", "baseline", "control", "candidate"]
COMPARED: tuple[Judged, ...] = ("baseline", "control", "candidate")


def calibrate(metric_name: str, *, baseline: Distance, candidate: Distance, control: Distance) -> float | None:
    """Places a candidate's distance: 1 within the baseline's slack, 0 at the control's, on a log scale between.

    The slack is ``SLACK`` times the baseline's distance; for a share at least what as good a candidate would not exceed
    in 19 of 20 draws of that many trials. Shares are (n + 1) / (N + 2): none wrong of N is no proof of none.

    Returns:
        None where the control is not ``SEPARATION`` times as far as the slack: the metric says nothing here.

    Raises:
        EvaluationError: the baseline's or the control's distance is no finite number.

    >>> at = lambda value: Distance(value=value, shown=value)
    >>> calibrate("l2", baseline=at(1e-4), candidate=at(1.5e-2), control=at(1.5))
    0.5
    """
    for name, distance in (("baseline", baseline), ("control", control)):
        if not math.isfinite(distance.value):
            raise EvaluationError(f"{metric_name}: distance of the {name} is {distance.value}")
    worst = _smooth(control)
    allowed = max(_slackened(baseline), EQUAL * worst)
    if worst <= SEPARATION * allowed:
        return None
    found = _smooth(candidate)
    if not found < worst:  # NaN too
        return 0.0
    return 1.0 if found <= allowed else 1 - math.log(found / allowed) / math.log(worst / allowed)


def judge(outputs: Mapping[Judged, Tensors], family: Family, *, mode: str, oracle: str) -> Correctness:
    """The gate: calibrates every metric of ``family`` over answers to the same check inputs; the least one counts.

    Args:
        outputs: answers of the oracle and of those compared with it.
        mode: how the baseline and the candidate ran.
        oracle: what the oracle and the control were.

    Returns:
        ``timed_outputs`` is left to the caller. Outputs that cannot be compared, or that no metric can tell from the
        control's, score 0 with the reason.
    """
    failed = Correctness(mode=mode, score=0.0, passed=False, oracle=oracle)
    found: dict[str, dict[str, Distance]] = {}
    for name in COMPARED:
        try:
            found[name] = family.distances(outputs[name], outputs["oracle"])
        except EvaluationError as error:
            return failed.model_copy(update={"reason": f"the {name}'s answer cannot be judged: {error}"})
        except KeyError as error:
            return failed.model_copy(update={"reason": f"the {name}'s answer lacks the output {error}"})
        except (ArithmeticError, RuntimeError, ValueError, IndexError) as error:  # numbers that no metric can take
            return failed.model_copy(update={"reason": f"the {name}'s answer cannot be judged: {error}"})
    metrics = []
    for name in found["baseline"]:
        distances = {arm: found[arm][name] for arm in COMPARED}
        try:
            score = calibrate(name, **distances)
        except EvaluationError as error:
            return failed.model_copy(update={"reason": str(error)})
        values = {arm: distance.value for arm, distance in distances.items()}
        shown = {arm: distance.shown for arm, distance in distances.items()}
        metrics.append(Metric(name=name, score=score, shown=shown, **values))
    telling = [(metric.score, metric) for metric in metrics if metric.score is not None]
    if not telling:
        reason = (
            "the check inputs cannot tell right from wrong: the control is about as near as production in every metric"
        )
        return failed.model_copy(update={"metrics": metrics, "reason": reason})
    score, worst = min(telling, key=lambda pair: pair[0])
    passed = score >= GATE
    reason = "" if passed else _reason(worst, score)
    return Correctness(mode=mode, score=score, passed=passed, reason=reason, metrics=metrics, oracle=oracle)


def _reason(worst: Metric, score: float) -> str:
    return (
        f"{worst.name} is {worst.candidate:.3g} from the oracle, production {worst.baseline:.3g}, "
        f"the known-bad control {worst.control:.3g}: score {score:.2f} is below {GATE}"
    )


def _smooth(distance: Distance) -> float:
    if distance.trials is None:
        return distance.value
    return (distance.value * distance.trials + 1) / (distance.trials + 2)


def _slackened(baseline: Distance) -> float:
    share = _smooth(baseline)
    if baseline.trials is None:
        return SLACK * share
    spread = max(0.0, 2 * share * (1 - share) / baseline.trials)  # of two draws; an error rate may exceed 1
    return max(SLACK * share, share + DEVIATIONS * math.sqrt(spread))
