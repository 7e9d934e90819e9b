"""Reasons to leave a site alone that have nothing to do with numbers: hooks, foreign forwards, shared modules."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from fastkernels.patches.dispatch import Dispatcher, Dormant
from fastkernels.patches.liveness import firing
from fastkernels.patches.site import Site
from fastkernels.patches.source import Rows
from fastkernels.runtime.candidate import Candidate


def blocked(site: Site, candidate: Candidate, *, mode: str, shared: frozenset[int]) -> str | None:
    """Why ``candidate`` may not stand at ``site`` as the model is now, or None. ``shared`` as of ``shared_globals``."""
    if id(site.module) in shared:
        return "it is a global of its Python module, so other models share it"
    merged = any(isinstance(s, Rows) for s in site.proposal.state.values())
    if mode == "training" and not candidate.supports.training:
        return f"{candidate.label} does not declare training=True"
    if mode == "training" and merged:
        return "gradients cannot reach parameters that are views of one merged storage"
    for name in site.proposal.inner:
        for path, part in site.module.get_submodule(name).named_modules():
            label = f"{name}.{path}" if path else name
            if "forward" in part.__dict__:
                return f"inner module {label} has a forward of its own; it would be passed over"
            tables = ((label, part._forward_hooks), (label, part._forward_pre_hooks))
            if firing(tables, site.proposal.idle) is not None:
                return f"a hook on inner module {label} would not fire"
    slots = site.module.__dict__
    present = slots.get("forward")
    if present is None or isinstance(present, (Dispatcher, Dormant)):
        return None
    if "_hf_hook" in slots and "_old_forward" in slots:
        if getattr(slots["_hf_hook"], "offload", False):
            return "its weights are offloaded by accelerate and not here to be bound"
        return None
    return f"it has an instance forward already ({origin(present)}), which a candidate would drop"


def shared_globals(model: nn.Module) -> frozenset[int]:
    """Ids of the modules that are globals of a Python module which defines one of the classes in ``model``."""
    files = {type(part).__module__ for part in model.modules()} | {"transformers.activations"}
    values = (v for f in files if f in sys.modules for v in list(vars(sys.modules[f]).values()))
    return frozenset(id(v) for v in values if isinstance(v, nn.Module))


def origin(forward: Any) -> str:
    """Where a forward that stands on a module comes from, for messages."""
    if isinstance(forward, (Dispatcher, Dormant)):
        return "another fastkernels patch"
    function = getattr(forward, "func", forward)
    module = getattr(function, "__module__", None) or type(forward).__module__
    return f"{module}.{getattr(function, '__qualname__', type(forward).__name__)}"
