"""A site: a place in a live model that computes a task, and how to translate between the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastkernels.patches.source import Source
from fastkernels.tasks import Task, get_task

Forward = Callable[..., Any]
# Runs one or more calls through a forward in the host's convention and returns the tensors to compare.
Scenario = Callable[[Forward], list[torch.Tensor]]
# Host arguments to interface arguments, or the reason why this call must stay with the original.
Enter = Callable[[tuple[Any, ...], dict[str, Any]], "Sequence[Any] | str"]
# The interface's result, and the call that ``enter`` made, to what the host returns.
Leave = Callable[[Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random inputs for scenarios: the same values for every dtype, rounded first to the site's own dtype."""

    seed: int
    device: torch.device
    dtype: torch.dtype
    site_dtype: torch.dtype

    def normal(self, *shape: int, scale: float = 1.0, salt: int = 0) -> torch.Tensor:
        """Normal values of this shape; ``salt`` tells one draw of a scenario from another."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + salt)
        values = torch.randn(shape, generator=generator) * scale
        return values.to(self.site_dtype).to(self.device, self.dtype)

    def integers(self, *shape: int, high: int, salt: int = 0) -> torch.Tensor:
        """Integers from 0 to ``high - 1``, int64."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + salt)
        return torch.randint(high, shape, generator=generator).to(self.device)

    def table(self, tensor: torch.Tensor) -> torch.Tensor:
        """A given float tensor (a RoPE table, a mask), rounded and moved like the draws."""
        return tensor.to(self.site_dtype).to(self.device, self.dtype)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One reading of a module as a task, to be decided by the numerical probe.

    Args:
        task: name of the task.
        facts: keyword arguments of the interface's constructor.
        state: the interface's state names, each with its source in the module.
        enter, leave: translate a call; ``leave`` None returns the interface's result as it is.
        scenarios: probe inputs in the host's convention.
        evidence: ``class``, ``fingerprint`` or ``schema``: how the module came to be proposed.
        inner: dotted names of submodules that the interface computes in the module's stead.
        parts: interface attribute to dotted name of the inner site that it is the image of.
        reads: attributes of the module that ``facts`` or ``enter`` froze.
        watches: (object, attribute) pairs beyond the module, a config's, that were frozen likewise.
        stand_in: a small module of the same class and parts, for probes of what is too large to run or to copy.
        idle: True for a hook on an inner module that would do nothing in a call under way now.
        drops: the module applies dropout in training mode, which the interface does not.
        on_live_weights: probe the module itself; else a clone with random weights.
        runs_on: device and dtype of the calls, for a module that has no tensor of its own to tell them.
        carrier: the task's reference may stand here for the sake of candidates inside it. Not where the host runs a
            kernel of its own for the whole, which a reference would lose to.
        gated: why nothing may stand here as the module is configured; it is then not probed, and the report says this.
        method: the method that the host calls, where that is not ``forward``.
    """

    task: str
    facts: Mapping[str, Any]
    state: Mapping[str, Source]
    enter: Enter
    leave: Leave | None = None
    scenarios: Callable[[Draws], Iterator[Scenario]]
    evidence: str = "schema"
    inner: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    watches: tuple[tuple[Any, str], ...] = ()
    stand_in: Callable[[nn.Module], nn.Module] | None = None
    idle: Callable[[Any], bool] | None = None
    drops: bool = False
    on_live_weights: bool = False
    runs_on: tuple[torch.device, torch.dtype] | None = None
    carrier: bool = True
    gated: str = ""
    method: str = "forward"

    def original(self, module: nn.Module) -> Forward:
        """What ``module`` computes without any patch."""
        plain: Forward = getattr(type(module), self.method).__get__(module)
        return plain

    def as_forward(self, implementation: Forward) -> Forward:
        """``implementation`` of the interface as a forward in the host's convention."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = self.enter(args, kwargs)
            if isinstance(call, str):
                raise ProbeRefusal(call)
            result = implementation(*call)
            return result if self.leave is None else self.leave(result, call)

        return forward


class ProbeRefusal(Exception):
    """A probe's own call does not fit the adapter: the proposal is wrong, not the model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """A recognised place: ``module`` at ``path`` computes ``proposal.task``; ``group`` shares one probe verdict.

    ``index`` is the place of ``proposal`` among the readings of its adapter.
    """

    path: str
    module: nn.Module
    proposal: Proposal
    index: int
    group: str
    error: str
    structure: str
    read_again: Callable[[nn.Module], list[Proposal]]
    structure_of: Callable[[nn.Module, list[Proposal]], str]

    @property
    def task(self) -> Task:
        return get_task(self.proposal.task)

    @property
    def name(self) -> str:
        """``path (Class)`` for messages."""
        return f"{self.path or '(model)'} ({type(self.module).__name__})"

    def proposal_for(self, module: nn.Module) -> Proposal | None:
        """The same reading of ``module`` (this one later, or a copy of it), or None where it reads otherwise now."""
        mine = (self.proposal.task, dict(self.proposal.facts), dict(self.proposal.state))
        proposals = self.read_again(module)
        if self.structure_of(module, proposals) != self.structure:
            return None
        return next((p for p in proposals if (p.task, dict(p.facts), dict(p.state)) == mine and not p.gated), None)


def one_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
    """Enter for modules that take one tensor, by position or by whatever name."""
    if len(args) == 1 and not kwargs:
        return args
    if not args and len(kwargs) == 1:
        return tuple(kwargs.values())
    return f"called with {len(args)} positional and {sorted(kwargs)} keyword arguments"
