"""patch and plan: puts candidates at the sites of a live model, and takes them out again exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from torch import nn

from fastkernels.errors import PatchError
from fastkernels.patches.blocked import shared_globals
from fastkernels.patches.compose import Decision, Select, cover, decide_sites, inside, tasks_wanted
from fastkernels.patches.dispatch import Dispatcher
from fastkernels.patches.install import Installer
from fastkernels.patches.interposition import Window
from fastkernels.patches.recognise import Recognition, adapters_for, recognise
from fastkernels.patches.report import CandidateReport, Report, SiteReport, UnrecognisedReport
from fastkernels.runtime.candidate import Lowering
from fastkernels.runtime.load import CandidateSet, load_candidates

Mode = Literal["inference", "training"]
OnMiss = Literal["raise", "report"]


class Patch:
    """A patch in effect: ``model``, ``report``, ``unpatch()``; a context manager that unpatches at its end."""

    def __init__(
        self,
        model: nn.Module,
        *,
        mode: Mode,
        recognition: Recognition,
        decisions: list[Decision],
        candidates: CandidateSet,
        installer: Installer,
        seconds: float,
    ) -> None:
        self.model, self.mode = model, mode
        self._recognition, self._decisions, self._candidates = recognition, decisions, candidates
        self._installer, self._seconds = installer, seconds
        self._when_undone: Callable[[], None] | None = None

    @property
    def report(self) -> Report:
        """Every site and candidate with its terminal state, and the call counts up to now."""
        return make_report(self)

    @property
    def dispatchers(self) -> Mapping[str, Dispatcher]:
        """What stands on the patched modules, by path: the call counters of interposition.

        Those beneath a whole model, which serve what its own leaves to the original, are counted in the report only.
        """
        return self._installer.counts.outermost

    def observe(self) -> Window:
        """A profiler window around real calls: eager, compiled, replayed. ``result`` then says which candidates ran.

        Raises:
            PatchError: another profiler is running.
        """
        return Window(self)

    def unpatch(self) -> None:
        """Restores every module's former ``__dict__`` entry, last in first out; a second call does nothing.

        Raises:
            PatchError: somebody patched on top; nothing is undone. Undo theirs first.
        """
        self._installer.undo()
        told, self._when_undone = self._when_undone, None
        if told is not None:
            told()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unpatch()


def patch(
    model: Any,
    candidates: Any,
    *,
    mode: Mode = "inference",
    on_miss: OnMiss = "raise",
    select: Select = "all",
    verify: bool = True,
    lowering: Lowering = "auto",
) -> Patch:
    """Puts ``candidates`` in the place of the modules of ``model`` that compute their tasks.

    Only instances are touched: each patched module gets a ``forward`` in its own ``__dict__``. Parameters keep their
    identity, names and values; where a candidate wants several as one matrix they become views of one storage.

    Args:
        model: a live module: of transformers, or any module built from parts that look like theirs; or a ``vllm.LLM``
            whose model is in this process and runs eagerly: ``patch(LLM(..., enforce_eager=True), candidates)``.
        candidates: a folder, ``{task: class}``, a list of marked classes, or ``"shipped"``.
        mode: ``inference``: calls that want gradients run the original; ``training``: only candidates that declare
            ``training=True`` are put in, and only where gradients reach the live parameters.
        on_miss: ``raise``: an error, and no patch, if a candidate is refused or nothing is applied; ``report``: the
            report says so.
        select: ``"all"``, globs over ``path`` or ``path:task``, or a function of a site.
        verify: run each candidate at each distinct site against the original and an oracle before it is put in.
        lowering: how compiled graphs hold a candidate: ``inline``, traced into them; ``opaque``, one operator that
            compilers do not look into; ``transparent``, an operator for Dynamo whose Triton kernels the compiler behind
            it launches itself, where one trace holds for every number of rows; ``auto``, inline where Dynamo can
            trace it.

    Raises:
        CandidateError: a candidate cannot be loaded, built, bound or called as its task says.
        PatchError: a candidate is refused, or nothing would be applied. The model is as it was. An engine's model is
            compiled, captured, or in another process.

    >>> import torch
    >>> from torch import nn
    >>> import fastkernels
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.norm = nn.LayerNorm(16)
    ...     def forward(self, x):
    ...         return self.norm(x)
    >>> model = Block()
    >>> with fastkernels.patch(model, "reference") as p, torch.no_grad():
    ...     _ = model(torch.randn(2, 16))
    ...     [(s.path, s.task, s.state, s.calls) for s in p.report.sites]
    [('norm', 'layer_norm', 'applied', 1)]
    >>> "forward" in model.norm.__dict__
    False
    """
    if mode not in ("inference", "training"):
        raise PatchError(f"mode: 'inference' or 'training', not {mode!r}.")
    if on_miss not in ("raise", "report"):
        raise PatchError(f"on_miss: 'raise' or 'report', not {on_miss!r}.")
    if not isinstance(model, nn.Module):
        from fastkernels.serving.vllm_live import live_model  # engines are not imported unless one is given

        with live_model(model) as (module, forget):
            result = patch(
                module,
                candidates,
                mode=mode,
                on_miss=on_miss,
                select=select,
                verify=verify,
                lowering=lowering,
            )
        result._when_undone = forget
        return result
    if any(t.is_meta for t in model.parameters()):
        raise PatchError(f"{type(model).__name__} has parameters without values (meta device): load it, or plan() it.")
    return _prepare(
        model, candidates, mode=mode, on_miss=on_miss, select=select, verify=verify, lowering=lowering, dry_run=False
    )


def plan(model: nn.Module, candidates: Any = "shipped", *, mode: Mode = "inference", select: Select = "all") -> Report:
    """The report that ``patch`` would start from: sites recognised, candidates matched; the model is not touched.

    Works on a model without values (meta device) too. Candidates are not run, so a wrong one still shows as applied.

    Raises:
        PatchError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise PatchError(
            f"plan: a live nn.Module is wanted, not {type(model).__module__}.{type(model).__qualname__}. What would "
            "stand in an engine is told by its workers' reports (FASTKERNELS_CANDIDATES, GET /fastkernels/report)."
        )
    return _prepare(
        model, candidates, mode=mode, on_miss="report", select=select, verify=False, lowering="auto", dry_run=True
    ).report


def _prepare(
    model: nn.Module,
    candidates: Any,
    *,
    mode: Mode,
    on_miss: OnMiss,
    select: Select,
    verify: bool,
    lowering: Lowering,
    dry_run: bool,
) -> Patch:
    started = time.perf_counter()
    chosen = load_candidates(candidates)
    recognition = recognise(model, adapters_for(model), tasks=tasks_wanted(chosen))
    decisions = decide_sites(recognition, chosen, select)
    installer = Installer(
        candidates=chosen,
        mode=mode,
        verify=verify,
        dry_run=dry_run,
        lowering=lowering,
        shared=shared_globals(model),
    )
    try:
        put_in(decisions, installer, on_miss=on_miss)
        result = Patch(
            model,
            mode=mode,
            recognition=recognition,
            decisions=decisions,
            candidates=chosen,
            installer=installer,
            seconds=time.perf_counter() - started,
        )
        if on_miss == "raise" and not result.report.applied:
            raise PatchError(
                f"{type(model).__name__}: no candidate applies to any of its {len(recognition.sites)} sites, so "
                f"nothing was patched. plan() shows them; on_miss='report' accepts this.\n"
                f"  {result.report.why_nothing()}"
            )
    except BaseException:
        installer.undo()
        raise
    return result


def put_in(decisions: list[Decision], installer: Installer, *, on_miss: OnMiss, beneath: bool = False) -> None:
    """Installs what was decided, outermost first; sites inside an installed one are covered by it.

    Beneath a whole model its layers are patched too: they serve the calls that the model's own site leaves to the
    original (hidden states of every layer, say). Identity candidates run the original itself, and get none beneath.
    """
    for decision in decisions:
        if decision.state != "applied" or decision.inside is not None:
            continue
        ready = installer.prepare(decision)
        if ready is None:
            if on_miss == "raise" and decision.state == "refused":
                raise PatchError(f"{decision.site.name}: {decision.reason}. Nothing was patched.")
            continue
        if decision.site.task.level == 4 and not installer.candidates.identity:
            try:
                put_in([replace(d) for d in inside(decision, decisions)], installer, on_miss=on_miss, beneath=True)
            except BaseException:
                ready.binding.undo()
                raise
        installer.place(decision, ready, beneath=beneath)
        cover(decision, decisions)


def make_report(patch: Patch) -> Report:
    """The report of a patch as of now."""
    sites = [_site_report(d, patch) for d in reversed(patch._decisions)]
    return Report(
        model=type(patch.model).__name__,
        mode=patch.mode,
        dry_run=patch._installer.dry_run,
        sites=sites,
        candidates=_candidate_reports(patch, sites),
        unrecognised=[
            UnrecognisedReport(path=u.path, cls=u.cls, task=u.task, reason=u.reason)
            for u in patch._recognition.unrecognised
        ],
        seconds=patch._seconds,
    )


def _site_report(decision: Decision, patch: Patch) -> SiteReport:
    site = decision.site
    outer = decision
    while outer.inside is not None:
        outer = outer.inside
    counts = patch._installer.counts
    applied = decision.state == "applied" and outer.site.path in counts.outermost
    standing = counts.outermost.get(site.path) or counts.beneath.get(site.path)
    lowered = dict(standing.binding.lowered) if standing is not None and decision.state == "applied" else {}
    whole = lowered.pop("", None)
    in_effect = applied or site.path in counts.beneath  # shadowed, but for the calls that the outer one leaves alone
    return SiteReport(
        path=site.path,
        cls=type(site.module).__name__,
        task=site.task.name,
        level=site.task.level,
        state=decision.state,  # type: ignore[arg-type] # one of the literals by construction
        candidate=decision.candidate.label if decision.candidate is not None else None,
        reason=decision.reason,
        inside=outer.site.path if outer is not decision else None,
        evidence=site.proposal.evidence,
        probe=site.error,
        lowering=whole.kind if whole is not None else None,
        lowering_reason=whole.reason if whole is not None else "",
        lowering_inside={path: f"{part.kind}: {part.reason}" for path, part in lowered.items()},
        calls=counts.calls(site) if in_effect else 0,
        bypassed=counts.bypassed(site) if in_effect else {},
    )


def _candidate_reports(patch: Patch, sites: list[SiteReport]) -> list[CandidateReport]:
    reports = []
    counts = patch._installer.counts
    placed = patch._installer.planned + counts.placements()
    for name, candidate in patch._candidates.by_task.items():
        own = [s for s in sites if s.task == name]
        applied = sum(s.state == "applied" for s in own)
        carried = 0 if own else placed[name]
        state, reason = "applied", ""
        if not applied and not carried:
            worst = next((s for want in ("refused", "gated", "shadowed") for s in own if s.state == want), None)
            state = worst.state if worst is not None else "unmatched"
            reason = worst.reason if worst is not None else "the model has no site for its task"
        reports.append(
            CandidateReport(
                task=name,
                label=candidate.label,
                digest=candidate.digest,
                state=state,  # type: ignore[arg-type] # one of the literals by construction
                reason=reason,
                sites=applied + carried,
                calls=counts.calls_of(name),
            )
        )
    for file in patch._candidates.unknown:
        reports.append(
            CandidateReport(task="?", label=file, digest="", state="unmatched", reason="no task has this file name")
        )
    return reports
