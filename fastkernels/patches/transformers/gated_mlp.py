"""Gated MLPs: gate and up as two linears or as one, any names, the activation found by its numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fastkernels.patches.fingerprint import evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Proposal, one_tensor
from fastkernels.patches.source import Param, Rows, Source
from fastkernels.patches.transformers.norms import rows
from fastkernels.tasks.L2.gated_mlp import ACTIVATIONS

KNOWN = (
    "transformers.models.llama.modeling_llama:LlamaMLP",
    "transformers.models.gemma.modeling_gemma:GemmaMLP",
    "transformers.models.phi3.modeling_phi3:Phi3MLP",
)
FUNCTIONS = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
}


def activation_of(module: nn.Module) -> str | None:
    """Which of the gated activations the module's child or attribute computes, by its values from -40 to 40."""
    x = torch.linspace(-40.0, 40.0, 4001)
    for name in ("act_fn", "act", "activation_fn", "activation", "hidden_act", "act_func"):
        function = getattr(module, name, None)
        if not callable(function) or (isinstance(function, nn.Module) and any(True for _ in function.parameters())):
            continue
        with torch.no_grad():
            try:
                y = function(x)
            except (RuntimeError, TypeError, ValueError):
                continue
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            continue
        for kind, expected in FUNCTIONS.items():
            if torch.allclose(y, expected(x), rtol=1e-5, atol=1e-6):
                return kind
    return None


def gated_mlp(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Three linears H to I, H to I, I to H, or two H to 2I, I to H; every order of gate and up is proposed."""
    linears = {name: child for name, child in module._modules.items() if type(child) is nn.Linear}
    others = [c for c in module._modules.values() if c is not None and type(c) is not nn.Linear]
    if len(linears) not in (2, 3) or module._parameters or any(next(c.parameters(), None) is not None for c in others):
        return
    if any(c.__class__.__name__ != "Dropout" and c._modules for c in others):
        return
    shape = {name: tuple(child.weight.shape) for name, child in linears.items()}
    biased = {child.bias is not None for child in linears.values()}
    act = activation_of(module)
    kinds = (act,) if act is not None else ACTIVATIONS
    if len(biased) != 1:
        return
    for down, (hidden, inner) in shape.items():
        ups = [name for name in linears if name != down]
        if len(linears) == 3 and all(shape[n] == (inner, hidden) for n in ups):
            orders: list[tuple[str, ...]] = [tuple(ups), tuple(reversed(ups))]
        elif len(linears) == 2 and shape[ups[0]] == (2 * inner, hidden):
            orders = [(ups[0],)]
        else:
            continue
        for order in orders:
            for kind in kinds:
                bias = biased == {True}
                yield Proposal(
                    task="gated_mlp",
                    facts={"hidden_size": hidden, "intermediate_size": inner, "hidden_act": kind, "bias": bias},
                    state=_state(order, down, bias),
                    enter=one_tensor,
                    scenarios=rows(hidden),
                    evidence=evidence(type(module), KNOWN),
                    inner=tuple(module._modules),
                    drops=any(isinstance(c, nn.Dropout) and c.p > 0 for c in others),
                )


def _state(order: tuple[str, ...], down: str, bias: bool) -> dict[str, Source]:
    state: dict[str, Source] = {}
    for kind in ("weight", "bias") if bias else ("weight",):
        names = tuple(f"{n}.{kind}" for n in order)
        state[f"gate_up_proj.{kind}"] = Param(names[0]) if len(names) == 1 else Rows(names)
        state[f"down_proj.{kind}"] = Param(f"{down}.{kind}")
    return state
