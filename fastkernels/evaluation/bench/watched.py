"""Did the candidate do the work itself? What ran is seen in one process; in another a call goes without its kernels."""

from __future__ import annotations

from dataclasses import dataclass

from fastkernels.evaluation.bench.judge import judge_drawn
from fastkernels.evaluation.bench.replies import Observed, RunnerFailed
from fastkernels.evaluation.bench.result import Failure
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.site import Site
from fastkernels.tasks.tensors import tensors


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What a call ran, and what speaks against it."""

    observed: Observed
    failures: tuple[Failure, ...] = ()


def watched(observer: Runner, ghost: Runner | None, site: Site, seed: int) -> Watched | None:
    """Observes the implementation in ``observer``; where it launches kernels of its own, a call in ``ghost`` goes
    without them: outputs that are right all the same were not computed by them. None where there is nothing to call.

    Both are processes of their own, which are never timed, and stand still afterwards.

    Raises:
        RunnerFailed: the implementation fails in ``observer``.
    """
    drawn = site.referee.expect(site.referee.draw(seed), name="observed")
    if drawn is None or not any(t.numel() for t in tensors(drawn.expected)):
        return None
    try:
        site.lend(observer)
        observed = observer.observe(site.give(observer, drawn.arguments))
    finally:
        observer.stop()
    if not observed.own or ghost is None:
        return Watched(observed=observed)
    try:
        site.lend(ghost)
        (outputs,) = site.outputs_for(ghost, [drawn.expected])
        called, stopped = ghost.ghost(site.give(ghost, drawn.arguments), outputs)
    except RunnerFailed:
        return Watched(observed=observed)  # it needs its kernels
    finally:
        ghost.stop()
    if not stopped or judge_drawn(drawn, called.outputs, None, task=site.task, dtype=site.dtype).failures:
        return Watched(observed=observed)
    detail = f"the outputs are right without {', '.join(stopped)}"
    return Watched(observed=observed, failures=(Failure(code="GHOST", where=drawn.name, detail=detail),))
