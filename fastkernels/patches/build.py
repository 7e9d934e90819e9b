"""Builds an implementation of a task for a site: constructor facts in, live parameters bound under its own names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fastkernels.errors import CandidateError
from fastkernels.patches.site import Proposal
from fastkernels.patches.source import Merge, Rows, device_of, locate, merge, tensor_of, view
from fastkernels.runtime.candidate import Candidate
from fastkernels.runtime.lowering import Lowered
from fastkernels.tasks import Interface, Task, by_interface, get_task

# Which candidate, if any, stands in for a task that is named inside another implementation.
Resolver = Callable[[Task, Mapping[str, Any]], Candidate | None]


@dataclass(kw_only=True)
class Binding:
    """Live parameters bound into an implementation, and what must hold for them to stay valid."""

    parameters: list[torch.Tensor] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    viewed: list[torch.Tensor] = field(default_factory=list)  # parameters bound as views: their address must stay
    lowered: Mapping[str, Lowered] = field(default_factory=dict)  # what a graph holds instead, by part; "" is the whole

    def undo(self) -> None:
        for lowered in self.lowered.values():
            lowered.close()
        for done in reversed(self.merges):
            done.undo()

    def take_over(self, former: Binding) -> None:
        """Storages that ``former`` made and this binding uses are this one's to undo from now on; others are undone."""
        for lowered in former.lowered.values():
            lowered.close()
        mine = {m.storage.data_ptr(): i for i, m in enumerate(self.merges)}
        for done in reversed(former.merges):
            i = mine.get(done.storage.data_ptr())
            if i is None:
                done.undo()
            elif done.made_here:
                self.merges[i] = replace(self.merges[i], made_here=True)


def facts_of(task: Task, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor facts of an interface call, defaults included."""
    bound = _constructor(task.interface).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _constructor(cls: type[nn.Module]) -> inspect.Signature:
    """The signature of ``cls(...)``; a class without a constructor of its own takes nothing."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return inspect.Signature(named if cls.__init__ is nn.Module.__init__ else parameters)


def construct(candidate: Candidate, facts: Mapping[str, Any], *, device: torch.device | str) -> nn.Module:
    """``candidate.cls`` built from constructor facts; facts at the interface's default may be unknown to it.

    Raises:
        CandidateError: a fact that matters is unknown to the constructor, or the constructor raises.
    """
    accepted = dict(facts)
    parameters = _constructor(candidate.cls).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        defaults = _constructor(candidate.task.interface).parameters
        for name in set(accepted) - set(parameters):
            if accepted[name] != defaults[name].default:
                raise CandidateError(
                    f"{candidate.label}: the constructor of {candidate.cls.__name__} does not take {name}, and this "
                    f"site needs {name}={accepted[name]!r}."
                )
            del accepted[name]
    try:
        with torch.device(device):
            built = candidate.cls(**accepted)
    except Exception as error:
        raise CandidateError(
            f"{candidate.label}: {candidate.cls.__name__}({_arguments(accepted)}) raised "
            f"{type(error).__name__}: {error}"
        ) from error
    built.__dict__["constructed_with"] = ((), accepted)  # as interfaces keep it
    return built


def _arguments(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in facts.items())


def substitute(
    module: nn.Module,
    resolve: Resolver,
    *,
    device: torch.device | str,
    path: str = "",
    within: frozenset[str] = frozenset(),
) -> list[tuple[str, Candidate]]:
    """Replaces interfaces inside ``module`` by candidates of their tasks; returns what went where.

    Only exact interface classes are replaced: a subclass is somebody's implementation and stays. Inside a
    replacement the search goes on, so an L1 candidate is found in L2 candidates inside an L3 reference. A candidate
    that holds its own task's interface (``within``) keeps it: it wraps the reference.
    """
    placed: list[tuple[str, Candidate]] = []
    for name, child in list(module.named_children()):
        here = f"{path}.{name}" if path else name
        task = by_interface().get(type(child))
        inside = within
        if task is not None and isinstance(child, Interface) and task.name not in within:
            facts = facts_of(task, *child.constructed_with)
            candidate = resolve(task, facts)
            if candidate is not None:
                replacement = construct(candidate, facts, device=device)
                replacement.train(child.training)
                setattr(module, name, replacement)
                placed.append((here, candidate))
                child, inside = replacement, within | {task.name}
        placed += substitute(child, resolve, device=device, path=here, within=inside)
    return placed


def bind(implementation: nn.Module, module: nn.Module, proposal: Proposal, *, label: str) -> Binding:
    """Puts the live parameters of ``module`` into ``implementation`` under the interface's names.

    Raises:
        CandidateError: the implementation lacks a state name of the interface, or has one more.
        PatchError: parameters that must become one storage cannot; what was done before is undone.
    """
    binding = Binding()
    try:
        for name, source in proposal.state.items():
            if isinstance(source, Rows):
                done = merge(module, source)
                binding.merges.append(done)
                tensor: torch.Tensor = done.storage
            else:
                tensor = view(module, source)
                if tensor is not tensor_of(module, source.name):
                    binding.viewed.append(tensor_of(module, source.name))
            _put(implementation, name, tensor, label, proposal.task)
            binding.parameters.append(tensor)
        _check_complete(implementation, proposal, label)
    except BaseException:
        binding.undo()
        raise
    return binding


def _put(implementation: nn.Module, name: str, tensor: torch.Tensor, label: str, task: str) -> None:
    try:
        owner, leaf = locate(implementation, name)
    except AttributeError:
        owner, leaf = implementation, ""
    slots = owner._parameters if leaf in owner._parameters else owner._buffers
    old = slots.get(leaf)
    if leaf not in slots or (old is not None and old.shape != tensor.shape):
        have = {n: tuple(p.shape) for n, p in implementation.named_parameters()}
        raise CandidateError(
            f"{label}: the state of {task} has {name} of shape {tuple(tensor.shape)}; "
            f"{type(implementation).__name__} has {have}. Use the interface's state names and shapes."
        )
    slots[leaf] = tensor if leaf in owner._buffers or isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)


def _check_complete(implementation: nn.Module, proposal: Proposal, label: str) -> None:
    unbound = sorted(n for n, _ in implementation.named_parameters() if n not in proposal.state)
    if unbound:
        raise CandidateError(
            f"{label}: {type(implementation).__name__} has parameters {unbound} that the state of {proposal.task} "
            f"does not ({sorted(proposal.state) or 'it has none'}). Use buffers for what is not a weight."
        )


def materialise_buffers(implementation: nn.Module, device: torch.device) -> None:
    """Buffers that constructors computed (tables) are lost on the meta device: builds anew the parts that hold them.

    Task interfaces built by equal calls share what one of them computed, as they only read it. A candidate may write
    to its buffers: each has its own.
    """
    built: dict[tuple[Any, ...], nn.Module] = {}
    own: dict[tuple[str, int], torch.Tensor] = {}  # by part and what it was copied from: what a part holds twice is one
    for path, part in implementation.named_modules():
        if not any(b is not None and b.is_meta for b in part._buffers.values()):
            continue
        names = path.split(".") if path else []
        above = (".".join(names[:n]) for n in range(len(names), -1, -1))
        owner = next(p for p in above if "constructed_with" in implementation.get_submodule(p).__dict__)
        maker = implementation.get_submodule(owner)
        args, kwargs = maker.__dict__["constructed_with"]
        # A repr tells scalars apart; of a large tensor it shows the edges.
        call = (type(maker), repr((args, kwargs))) if _is_plain((args, kwargs)) else (owner,)
        shared = type(maker) in by_interface() and call != (owner,)
        if call not in built:
            with torch.device(device):
                built[call] = type(maker)(*args, **kwargs)
        real = built[call].get_submodule(path[len(owner) :].lstrip("."))
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                made = real._buffers[name]
                if made is not None and not shared:
                    made = own.setdefault((owner, id(made)), made.detach().clone())
                part._buffers[name] = made


def _is_plain(value: Any) -> bool:
    """Whether two values with the same repr are equal: scalars, dtypes and devices, in tuples, lists and mappings."""
    if isinstance(value, Mapping):
        return all(_is_plain(v) for pair in value.items() for v in pair)
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device))


def bound_reference(module: nn.Module, proposal: Proposal, *, dtype: torch.dtype) -> nn.Module:
    """The task's reference with copies of the module's parameters in ``dtype``: for probes and oracles."""
    task = get_task(proposal.task)
    device = device_of(module)
    with torch.device("meta"):
        reference = task.interface(**proposal.facts)
    materialise_buffers(reference, device)
    state: dict[str, torch.Tensor] = {}
    for name, source in proposal.state.items():
        if isinstance(source, Rows):
            tensors = [_part(module, p, source) for p in source.parts]
            state[name] = torch.cat([t.to(dtype) for t in tensors])
        else:
            state[name] = view(module, source).detach().to(dtype)
    for name, tensor in state.items():
        owner, leaf = locate(reference, name)
        wanted = owner._parameters.get(leaf, owner._buffers.get(leaf))
        if wanted is None or wanted.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the interface {wanted and tuple(wanted.shape)}")
        slots = owner._parameters if leaf in owner._parameters else owner._buffers
        slots[leaf] = nn.Parameter(tensor, requires_grad=False) if slots is owner._parameters else tensor
    _check_complete(reference, proposal, "reference")
    return reference.eval()


def _part(module: nn.Module, part: str | int, source: Rows) -> torch.Tensor:
    if isinstance(part, str):
        owner, leaf = locate(module, part)
        return (owner._parameters.get(leaf) if leaf in owner._parameters else owner._buffers[leaf]).detach()  # type: ignore[union-attr]
    like = _part(module, source.names[0], source)
    return like.new_zeros(part, *like.shape[1:])
