"""Installs decided implementations, one transaction for a patch: all of it stands, or none of it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastkernels.errors import CandidateError, LoweringError, PatchError
from fastkernels.patches.blocked import blocked, origin
from fastkernels.patches.build import Binding, bind, construct, materialise_buffers, substitute
from fastkernels.patches.compose import Decision, fits, site_device, site_dtype
from fastkernels.patches.counts import Counts
from fastkernels.patches.dispatch import Dispatcher
from fastkernels.patches.outcomes import Outcomes
from fastkernels.patches.site import Forward, Proposal, Site
from fastkernels.patches.source import device_of
from fastkernels.patches.verify import verify
from fastkernels.runtime.candidate import Candidate, Lowering
from fastkernels.runtime.load import CandidateSet
from fastkernels.runtime.lowering import Lowered
from fastkernels.tasks import Task

ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class Ready:
    """An implementation with the live parameters in it, verified, and not yet at its site."""

    implementation: nn.Module
    binding: Binding


class Installer:
    """Builds, binds, verifies and places implementations; remembers how to undo each step."""

    def __init__(
        self,
        *,
        candidates: CandidateSet,
        mode: str,
        verify: bool,
        dry_run: bool,
        lowering: Lowering = "auto",
        shared: frozenset[int] = frozenset(),
    ) -> None:
        self.outcomes = Outcomes(lowering)
        self.candidates, self.mode, self.verify, self.dry_run = candidates, mode, verify, dry_run
        self.shared = shared
        self.counts = Counts()
        self._undo: list[tuple[nn.Module, str, Any, Dispatcher]] = []
        self._verdicts: dict[tuple[Any, ...], str | None] = {}
        self.planned: Counter[str] = Counter()  # placements of a dry run

    # -- placing -------------------------------------------------------------------------------------------------

    def prepare(self, decision: Decision) -> Ready | None:
        """Builds, binds and verifies the decision's implementation; None, with state and reason changed, where it may
        not stand at its site."""
        site, candidate = decision.site, decision.candidate
        assert candidate is not None
        reason = blocked(site, candidate, mode=self.mode, shared=self.shared)
        if reason is not None:
            decision.state, decision.reason = "gated", reason
            return None
        implementation = self._build(site.proposal, candidate, site)
        decision.placed = [c.task.name for _, c in implementation.__dict__["placed"]]
        if decision.carries:
            used = decision.carries & set(decision.placed)
            if not used:  # the reference has no such part with these facts: nothing to carry
                decision.state, decision.candidate, decision.reason = "unmatched", None, "no candidate for its task"
                return None
            decision.reason = f"carries {', '.join(sorted(used))}"
        if self.dry_run:
            return Ready(implementation=implementation, binding=Binding())
        try:
            binding = self._bind(implementation, site.module, site.proposal, candidate, site)
        except PatchError as error:
            decision.state, decision.reason = "gated", str(error)
            return None
        device, dtype = _where(site)
        forward, original = implementation.forward, self._slot(site)[1]
        try:
            reason = self._check(site, candidate, forward, original, dtype, device, decision.placed)
            if reason is None:
                binding.lowered = self._lower(site, candidate, implementation, original)
        except BaseException:
            binding.undo()
            raise
        if reason is not None:
            binding.undo()
            decision.state, decision.reason = "refused", reason
            return None
        return Ready(implementation=implementation, binding=binding)

    def place(self, decision: Decision, ready: Ready, *, beneath: bool = False) -> None:
        """Puts what ``prepare`` made at its site; ``beneath`` another that computes the same as a rule."""
        site, candidate = decision.site, decision.candidate
        assert candidate is not None
        if self.dry_run:
            self.planned.update(() if beneath else decision.placed)
            return
        device, dtype = _where(site)
        slot, original = self._slot(site)
        self.counts.watch(site.path, ready.implementation)
        dispatcher = Dispatcher(
            module=site.module,
            proposal=site.proposal,
            implementation=ready.implementation,
            binding=ready.binding,
            original=original,
            admit=lambda d, where: self._admit(site, candidate, dispatcher, d, where, decision.placed),
            rebuild=self._rebuilder(site, candidate),
            differentiable=candidate.supports.training and not ready.binding.merges,
            identity=self.candidates.identity,
            where=site.name,
            family=self,
        )
        dispatcher.admitted[(dtype, device)] = None
        slots = site.module.__dict__
        self._undo.append((site.module, slot, slots.get(slot, ABSENT), dispatcher))
        slots[slot] = dispatcher
        (self.counts.beneath if beneath else self.counts.outermost)[site.path] = dispatcher

    def _slot(self, site: Site) -> tuple[str, Forward]:
        """Where the dispatcher goes: the method that the host calls, or under accelerate's own forward, so that its
        hooks still run."""
        slots = site.module.__dict__
        slot = "_old_forward" if "_hf_hook" in slots and "_old_forward" in slots else site.proposal.method
        return slot, slots.get(slot) or getattr(site.module, slot)

    def _build(self, proposal: Proposal, candidate: Candidate, site: Site) -> nn.Module:
        def resolve(task: Task, facts: Mapping[str, Any]) -> Candidate | None:
            inner = self.candidates.get(task.name)
            if inner is None or inner.cls is task.interface or fits(inner, site, facts) is not None:
                return None
            return inner

        implementation = construct(candidate, proposal.facts, device="meta")
        placed = substitute(implementation, resolve, device="meta", within=frozenset({candidate.task.name}))
        implementation.__dict__["placed"] = placed
        return implementation.eval()

    def _bind(
        self, implementation: nn.Module, module: nn.Module, proposal: Proposal, candidate: Candidate, site: Site
    ) -> Binding:
        device = device_of(module) if proposal.runs_on is None else proposal.runs_on[0]
        try:
            binding = bind(implementation, module, proposal, label=candidate.label)
        except CandidateError as error:
            raise CandidateError(f"{site.name}: {error}") from error
        materialise_buffers(implementation, device)
        return binding

    def _rebuilder(self, site: Site, candidate: Candidate) -> Callable[[nn.Module], Any]:
        def rebuild(module: nn.Module) -> tuple[Proposal, nn.Module, Binding] | str:
            proposal = site.proposal_for(module)
            if proposal is None:
                return "it reads otherwise than when it was patched: a part or an attribute of it is another"
            try:
                implementation = self._build(proposal, candidate, site)
                binding = self._bind(implementation, module, proposal, candidate, site)
            except (PatchError, CandidateError) as error:
                return str(error)
            original = proposal.original(module)
            binding.lowered = self._lower(site, candidate, implementation, original)
            if module is site.module:  # a copy's calls prove nothing about the module that is patched
                self.counts.watch(site.path, implementation)
            return proposal, implementation, binding

        return rebuild

    def _lower(
        self, site: Site, candidate: Candidate, implementation: nn.Module, original: Forward
    ) -> Mapping[str, Lowered]:
        if self.candidates.identity:
            return {}
        device, dtype = _where(site)
        subject = self._subject(site, candidate, implementation.forward, original)
        try:
            return self.outcomes.lower(
                implementation, candidate, site.proposal, group=site.group, dtype=dtype, device=device, subject=subject
            )
        except LoweringError as error:
            raise LoweringError(f"{site.name}: {error}") from error

    # -- verifying -----------------------------------------------------------------------------------------------

    def _check(
        self,
        site: Site,
        candidate: Candidate,
        forward: Forward,
        original: Forward,
        dtype: torch.dtype,
        device: torch.device,
        placed: list[str],
    ) -> str | None:
        if not self.verify or self.candidates.identity:
            return None
        key = (site.group, candidate.digest, candidate.label, dtype, device, tuple(placed))
        if key not in self._verdicts:
            inner = sorted({self.candidates.by_task[t].label for t in placed if t in self.candidates.by_task})
            label = candidate.label + (f" (with {', '.join(inner)} inside)" if inner else "")
            with self._subject(site, candidate, forward, original) as (module, proposal, run, base):
                self._verdicts[key] = verify(
                    module=module,
                    proposal=proposal,
                    implementation=run,
                    original=base,
                    dtype=dtype,
                    device=device,
                    where=site.name,
                    label=label,
                )
        return self._verdicts[key]

    @contextmanager
    def _subject(
        self, site: Site, candidate: Candidate, forward: Forward, original: Forward
    ) -> Iterator[tuple[nn.Module, Proposal, Forward, Forward]]:
        """What is verified for a site: itself, or its stand-in with the candidate built and bound for that."""
        if site.proposal.stand_in is None:
            yield site.module, site.proposal, forward, original
            return
        small = site.proposal.stand_in(site.module)
        proposal = site.read_again(small)[site.index]
        implementation = self._build(proposal, candidate, site)
        binding = self._bind(implementation, small, proposal, candidate, site)
        try:
            yield small, proposal, implementation.forward, proposal.original(small)
        finally:
            binding.undo()

    def _admit(
        self,
        site: Site,
        candidate: Candidate,
        dispatcher: Dispatcher,
        dtype: torch.dtype,
        device: torch.device,
        placed: list[str],
    ) -> str | None:
        """May the candidate run in a dtype or on a device that was not there when it was put in?"""
        refusal = candidate.supports.refusal(device=device, dtype=dtype, facts=site.proposal.facts)
        if refusal is not None:
            return refusal
        implementation = dispatcher.implementation.forward
        return self._check(site, candidate, implementation, dispatcher.original, dtype, device, placed)

    # -- undoing ------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Takes every dispatcher out again and unmerges storages; refuses where another stands on top."""
        for module, slot, _, dispatcher in self._undo:
            present = module.__dict__.get(slot)
            if present is not dispatcher:
                raise PatchError(
                    f"{dispatcher.where}: {origin(present)} was put on top of this patch. Undo that first; nothing "
                    "was unpatched."
                )
        while self._undo:
            module, slot, former, dispatcher = self._undo.pop()
            if former is ABSENT:
                del module.__dict__[slot]
            else:
                module.__dict__[slot] = former
            dispatcher.retire()
        self.outcomes.close()


def _where(site: Site) -> tuple[torch.device, torch.dtype]:
    return site_device(site) or torch.device("cpu"), site_dtype(site)
