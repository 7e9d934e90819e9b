"""Is an extracted file equal to the live module? Both on the same random weights and inputs, by the accuracy class."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fastkernels.authoring.model import Described
from fastkernels.errors import EvaluationError
from fastkernels.patches.build import bound_reference, facts_of
from fastkernels.patches.probe import quiet, random_clone
from fastkernels.patches.site import Draws, Proposal, Site
from fastkernels.tasks.accuracy import CONTRACTION, Accuracy, Error, measure, worst
from fastkernels.tasks.tensors import tensors

CPU = torch.device("cpu")
DTYPE = torch.float32


@dataclass(frozen=True, kw_only=True)
class Checked:
    """How far a file's outputs are from the live module's, and what the accuracy class allows; ``why`` it failed."""

    error: Error
    limit: Error
    why: str = ""

    @property
    def equal(self) -> bool:
        return not self.why and self.error.l2 <= self.limit.l2 and self.error.peak <= self.limit.peak


def check_task(file: Path, site: Site) -> Checked:
    """Compares the file with a copy of the site's module on the inputs that its probe takes, in float32.

    The limit is what the class allows beyond the file's own rounding error, told by the file in float64.
    """
    live = random_clone(site.module, device=CPU)
    proposal = site.read_again(live)[site.index]
    module = load(file)
    accuracy = site.task.accuracy
    with quiet(live):
        model = _bound(module, site, live, proposal, DTYPE)
        own_inputs = _runs(module, model)
        errors = _errors(model, live, proposal)
        error = worst(errors)
        limit = accuracy.limit(Error(l2=0.0, peak=0.0), DTYPE)
        if not own_inputs and errors and (error.l2 > limit.l2 or error.peak > limit.peak):
            limit = accuracy.limit(_own_error(module, model, site, live, proposal), DTYPE)
    return Checked(error=error, limit=limit, why=own_inputs or ("" if errors else "the probe has no inputs"))


def _errors(model: nn.Module, live: nn.Module, proposal: Proposal) -> list[Error]:
    draws = Draws(seed=11, device=CPU, dtype=DTYPE, site_dtype=DTYPE)
    return [
        error
        for scenario in proposal.scenarios(draws)
        for error in _compared(scenario(proposal.as_forward(model)), scenario(proposal.original(live)))
    ]


def _bound(module: ModuleType, site: Site, live: nn.Module, proposal: Proposal, dtype: torch.dtype) -> nn.Module:
    """The file's ``Model`` with the live module's parameters under the task's names."""
    reference = bound_reference(live, proposal, dtype=dtype)
    wanted, has = facts_of(site.task, (), proposal.facts), module.get_init_inputs()
    if list(wanted.values()) != has:
        raise EvaluationError(f"{module.__file__}: its constants are {has}, the live module has {wanted}.")
    with torch.device(CPU):
        model = module.Model(*has)
    model.load_state_dict(reference.state_dict(), assign=True)
    return model.to(dtype).eval()


def _own_error(module: ModuleType, model: nn.Module, site: Site, live: nn.Module, proposal: Proposal) -> Error:
    """Rounding error of the file itself on the same inputs: in float32 against float64."""
    wide = _bound(module, site, live, proposal, torch.float64)
    errors: list[Error] = []
    narrow_draws = Draws(seed=11, device=CPU, dtype=DTYPE, site_dtype=DTYPE)
    wide_draws = Draws(seed=11, device=CPU, dtype=torch.float64, site_dtype=DTYPE)
    pairs = zip(proposal.scenarios(narrow_draws), proposal.scenarios(wide_draws), strict=True)
    for narrow, exact in pairs:
        errors += _compared(narrow(proposal.as_forward(model)), exact(proposal.as_forward(wide)))
    return worst(errors)


def check_imported(file: Path, module: nn.Module, described: Described) -> Checked:
    """Compares the file with a copy of the live module on the file's own inputs, in float32, by value."""
    live = materialised(module, described)
    loaded = load(file)
    accuracy: Accuracy = CONTRACTION
    limit = accuracy.limit(Error(l2=0.0, peak=0.0), DTYPE)
    with quiet(live):
        model = loaded.Model(*loaded.get_init_inputs()).to(DTYPE).eval()
        model.module.load_state_dict(live.state_dict(), assign=True)
        unequal = [n for n, b in model.module.named_buffers() if not torch.equal(b, live.get_buffer(n))]
        own_inputs = _runs(loaded, model)
        if own_inputs or unequal:
            why = own_inputs or f"buffer {unequal[0]} has other values than the live module's"
            return Checked(error=Error(l2=float("inf"), peak=float("inf")), limit=limit, why=why)
        inputs = loaded.get_inputs(dtype=DTYPE)
        got = tensors(model(*inputs))
        model.module = live
        error = worst(_compared(got, tensors(model(*inputs))))
    return Checked(error=error, limit=limit, why="" if got else "it returns no tensor")


def materialised(module: nn.Module, described: Described) -> nn.Module:
    """A float32 copy of a module of the described model on the CPU: random parameters, buffers as the model makes them.

    Buffers (RoPE tables) are made by transformers' own initialisation, as after loading a checkpoint.
    """
    computed = copy.deepcopy(module).to_empty(device=CPU).float()
    for buffer in computed.buffers():
        buffer.fill_(torch.nan if buffer.is_floating_point() else 0)
    owner = _owner(module, described)
    with torch.no_grad():
        for part in computed.modules():
            owner._init_weights(part)  # type: ignore[operator] # of PreTrainedModel
    live = random_clone(computed, device=CPU)
    loaded = computed.state_dict().keys()
    for name, buffer in computed.named_buffers():
        if buffer.is_floating_point() and buffer.isnan().any():
            if name not in loaded:
                raise EvaluationError(f"{type(module).__name__}: transformers initialises no buffer {name}.")
            buffer.uniform_(0.5, 1.5)  # a checkpoint would hold it: a frozen norm's weight, its variance
        live.get_buffer(name).copy_(buffer)
    return live


def _owner(module: nn.Module, described: Described) -> nn.Module:
    """The innermost model that holds ``module``: it knows how its parts are initialised, a model around it does not."""
    found = described.model
    for part in described.model.modules():  # outer ones first
        if hasattr(part, "_init_weights") and any(module is inner for inner in part.modules()):
            found = part
    return found


def _runs(module: ModuleType, model: nn.Module) -> str:
    """Why the file's own inputs do not go through it, or nothing: what its ``main`` asserts of two draws."""
    try:
        first, other = (tensors(model(*module.get_inputs(seed, dtype=DTYPE))) for seed in (0, 1))
    except Exception as error:  # noqa: BLE001 - the file is code; what it raises is the finding
        return f"on its own inputs: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finite = all(bool(t.isfinite().all()) for t in first if t.is_floating_point())
    if not first or not finite:
        return "on its own inputs: an output is missing or not finite"
    same = all(map(torch.equal, first, other))
    return "on its own inputs: the outputs do not depend on them" if same and module.RANDOM else ""


def _compared(got: list[torch.Tensor], want: list[torch.Tensor]) -> list[Error]:
    if len(got) != len(want):
        return [Error(l2=float("inf"), peak=float("inf"))]
    return [measure(_real(g), _real(w)) for g, w in zip(got, want, strict=True)]


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """Both parts of a complex tensor: the measure sees real ones only."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def load(file: Path) -> Any:
    """The extracted file as a module of its own, not in ``sys.modules``."""
    name = f"extracted_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise EvaluationError(f"{file}: cannot be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
