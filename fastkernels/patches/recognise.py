"""Finds the sites of a model: adapters propose readings of each module, the numerical probe decides."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from fastkernels.patches.fingerprint import depends_on_layer_index
from fastkernels.patches.liveness import NOT_READ
from fastkernels.patches.probe import Verdict, decide
from fastkernels.patches.site import Proposal, Site
from fastkernels.patches.source import join

LAYER_INDEX = ("layer_idx", "layer_id", "layer_index", "layer_number")
NAMES = ("prefix", "layer_name")  # with which engines tell layers apart: they say nothing of what one computes
ENGINES = ("vllm", "sglang")  # serving engines: hosts whose models hold modules of their own
PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(kw_only=True)
class Host:
    """What adapters may ask about the model around a module: the model itself and the sites found inside so far."""

    model: nn.Module
    sites: dict[int, list[Site]] = field(default_factory=dict)
    # Stand-ins (random clones) answer for the module they were cloned from.
    images: dict[int, nn.Module] = field(default_factory=dict)
    # Facts about the whole model that adapters look up once.
    memo: dict[str, Any] = field(default_factory=dict)

    def path(self, module: nn.Module) -> str:
        """Path of ``module`` in the model, or of the module that it is an image of; empty where it is neither."""
        if "paths" not in self.memo:
            self.memo["paths"] = {id(part): path for path, part in self.model.named_modules()}
        return self.memo["paths"].get(id(self.images.get(id(module), module)), "")

    def site(self, module: nn.Module | None, *tasks: str) -> Site | None:
        """The site at ``module`` for one of ``tasks``, or None."""
        known = self.sites.get(id(self.images.get(id(module), module)), [])
        return next((s for s in known if s.proposal.task in tasks), None)


Adapter = Callable[[nn.Module, Host], Iterable[Proposal]]


@dataclass(frozen=True, kw_only=True)
class Unrecognised:
    """A module that looked like a task and is not one, or whose probe could not run."""

    path: str
    cls: str
    task: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """Sites in module order, inner before outer, and the modules that only looked like one."""

    sites: tuple[Site, ...]
    unrecognised: tuple[Unrecognised, ...]


def recognise(model: nn.Module, adapters: Iterable[Adapter], *, tasks: frozenset[str] | None = None) -> Recognition:
    """The sites of ``model``.

    Each distinct (class, constructor facts) is probed once. ``tasks`` limits the search to the named tasks and to
    what they need inside.
    """
    host = Host(model=model)
    verdicts: dict[str, Verdict] = {}
    found: list[Site] = []
    missed: list[Unrecognised] = []
    for path, module in _inner_first(model):
        for adapter in adapters:
            proposals = [p for p in adapter(module, host) if tasks is None or p.task in tasks]
            if not proposals:
                continue
            key = group_key(module, proposals)
            read_again = _repropose(adapter, module, host, tasks)
            gated = bool(proposals[0].gated)  # by its place perhaps, so it says nothing of others in its group
            if not gated and key not in verdicts:
                verdicts[key] = decide(module, proposals, read_again)
            verdict = Verdict(index=0, error="not probed") if gated else verdicts[key]
            if verdict.index is None:
                missed.append(
                    Unrecognised(
                        path=path,
                        cls=type(module).__name__,
                        task=proposals[0].task,
                        reason=f"probe mismatch: {verdict.error}",
                    )
                )
                continue
            proposal = proposals[verdict.index]
            site = Site(
                path=path,
                module=module,
                proposal=proposal,
                index=verdict.index,
                group=key,
                error=verdict.error,
                structure=group_key(module, proposals, placement=False),
                read_again=read_again,
                structure_of=partial(group_key, placement=False),
            )
            host.sites.setdefault(id(module), []).append(site)
            found.append(site)
    return Recognition(sites=tuple(found), unrecognised=tuple(missed))


def _inner_first(model: nn.Module, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, nn.Module]]:
    seen = set() if seen is None else seen
    if id(model) in seen:  # a tied module is one site, under its first name
        return
    seen.add(id(model))
    for name, child in model.named_children():
        yield from _inner_first(child, join(path, name), seen)
    yield path, model


def _repropose(
    adapter: Adapter, module: nn.Module, host: Host, tasks: frozenset[str] | None
) -> Callable[[nn.Module], list[Proposal]]:
    def read(clone: nn.Module) -> list[Proposal]:
        originals = dict(module.named_modules())
        images = {id(part): originals[name] for name, part in clone.named_modules() if name in originals}
        # Only this module's image is consulted, so the host seen by the adapter stays the model's.
        view = Host(model=host.model, sites=host.sites, images=images, memo=host.memo)
        return [p for p in adapter(clone, view) if tasks is None or p.task in tasks]

    return read


def group_key(module: nn.Module, proposals: list[Proposal], *, placement: bool = True) -> str:
    """Digest of everything that may change the verdict: classes, plain attributes, shapes, readings, and (unless
    ``placement`` is False) dtypes and devices."""
    described: list[Any] = [(p.task, sorted(p.facts.items(), key=str), sorted(p.state)) for p in proposals]
    for name, part in module.named_modules():
        attributes = {k: v for k, v in vars(part).items() if isinstance(v, PLAIN) and k not in ("training", *NAMES)}
        if not depends_on_layer_index(type(part)):
            attributes = {k: v for k, v in attributes.items() if k not in LAYER_INDEX}
        if not placement:  # a comparison with later: the host may have noted something of its own meanwhile
            attributes = {k: v for k, v in attributes.items() if k not in NOT_READ and not k.startswith("_")}
        tensors = [
            (k, tuple(t.shape), *((str(t.dtype), t.device.type) if placement else ()))
            for k, t in (*part._parameters.items(), *part._buffers.items())
            if t is not None
        ]
        described.append((name, f"{type(part).__module__}.{type(part).__qualname__}", attributes, tensors))
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def adapters_for(model: nn.Module) -> tuple[Adapter, ...]:
    """The adapters of the host that this model belongs to, level by level."""
    packages = {type(part).__module__.partition(".")[0] for part in model.modules()}
    host = next((name for name in ENGINES if name in packages), "transformers")
    # A host's package is imported only when a model of it is patched.
    adapters: tuple[Adapter, ...] = importlib.import_module(f"fastkernels.patches.{host}").ADAPTERS
    return adapters
