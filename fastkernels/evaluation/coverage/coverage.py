"""How much of a model candidates stand for: sites, and the share of the unpatched model's time that passes in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fastkernels.evaluation.coverage.result import Coverage, TaskCoverage
from fastkernels.evaluation.coverage.time_share import outermost, time_share
from fastkernels.patches.compose import Select
from fastkernels.patches.patch import patch
from fastkernels.patches.report import Report, SiteReport


def coverage(
    model: nn.Module, candidates: Any, run: Callable[[], Any], *, select: Select = "all", verify: bool = True
) -> Coverage:
    """Patches the model to learn the sites, takes the patch off again, and measures what passes at these sites.

    Args:
        model: unpatched, with its weights; it is as before at the end.
        candidates: as for ``patch``.
        run: calls the model as it is called in production, in eager mode; without arguments.
        select: as for ``patch``.
        verify: whether each candidate is tried at each site first: those that fail there cover nothing.

    Raises:
        EvaluationError: the model is patched, or ``run`` does not call it.
        PatchError: as ``patch`` does.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64)).eval()
    >>> with torch.no_grad():
    ...     found = coverage(model, "shipped", lambda: model(torch.ones(8, 64)))
    >>> [(t.task, t.sites, t.applied) for t in found.tasks], 0 < found.share < 1
    ([('layer_norm', 1, 1), ('linear', 1, 0)], True)
    """
    with patch(model, candidates, on_miss="report", select=select, verify=verify) as handle:
        report = handle.report
    return coverage_of(report, model, run)


def coverage_of(report: Report, model: nn.Module, run: Callable[[], Any]) -> Coverage:
    """Coverage of the sites at which a patch of the same model is applied, as its report says.

    A site inside another one that a candidate holds counts for the outer one, whose time includes it: shares add up
    over tasks. Candidates without a module of their own (a rotary embedding within attention, an activation within an
    MLP) have no share: their time is that of the site around them, or of no site.

    Raises:
        EvaluationError: the model is patched or has no such modules, or ``run`` does not call it.
    """
    applied = [site for site in report.applied if not is_carrier(site)]
    highest = {site.path: site for site in sorted(applied, key=lambda site: site.level)}  # a path may be read twice
    timed = time_share(model, outermost(highest), run)
    shares: dict[str, float] = {}
    for path, share in timed.inside.items():
        shares[highest[path].task] = shares.get(highest[path].task, 0.0) + share
    tasks = [
        TaskCoverage(
            task=task,
            sites=sum(site.task == task for site in report.sites),
            applied=sum(site.task == task for site in applied),
            share=shares.get(task),
        )
        for task in dict.fromkeys(site.task for site in report.sites)
    ]
    known = {task.task for task in tasks}
    tasks += [
        TaskCoverage(task=c.task, sites=c.sites, applied=c.sites)
        for c in report.candidates
        if c.state == "applied" and c.task not in known
    ]
    tasks.sort(key=lambda task: (-(task.share or 0.0), -task.applied, task.task))
    return Coverage(
        sites=len(report.sites),
        applied=len(applied),
        clock=timed.clock,
        share=min(1.0, sum(shares.values())),
        tasks=tasks,
        outside=dict(timed.outside),
    )


def is_carrier(site: SiteReport) -> bool:
    """Whether plain PyTorch stands at the site only for the sake of candidates within: it replaces nothing itself."""
    return site.candidate == "reference" and site.reason.startswith("carries ")
