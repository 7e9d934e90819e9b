"""Norms of SGLang: RMS norms with the residual add in front, Gemma's, layer norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.bypass import walked_around
from fastkernels.patches.sglang.running import invariance, layer_class, runs_on, unquantised
from fastkernels.patches.site import Draws, Forward, Proposal, Scenario, one_tensor
from fastkernels.patches.source import Param
from fastkernels.patches.transformers.attention import argument_reason

ARGUMENTS = ("x", "residual", "post_residual_addition", "quant_linear", "backend")
GEMMA = {"GemmaRMSNorm": "variance_epsilon", "Gemma3RMSNorm": "eps"}
# Of RMSNorm, with the value that the task says: any other computes something else.
PLAIN_OPTIONS: Mapping[str, Any] = {
    "fp32_residual": False,
    "override_orig_dtype": None,
    "variance_size_override": None,
    "x_pad_to_multiple": 0,
}


def rms_norm(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """``RMSNorm`` as it is configured by default, and ``RMSNormWithoutScale``."""
    cls = layer_class(module)
    if cls == "RMSNormWithoutScale":
        facts = {"hidden_size": module.hidden_size, "eps": module.eps, "has_weight": False}
        yield _proposal("rms_norm", module, host, facts=facts, residual=False, reads=("eps",))
        return
    if cls != "RMSNorm":
        return
    own = vars(module)
    other = [f"{n}={own[n]}" for n, plain in PLAIN_OPTIONS.items() if n in own and own[n] != plain]
    feeds = own.get("_quant_linear")  # since 0.5.23: told once, where earlier versions pass it with each call
    if feeds is not None and not unquantised(feeds):
        other.append("its output is quantised for the linear that follows")
    facts = {
        "hidden_size": module.hidden_size,
        "eps": module.variance_epsilon,
        "has_weight": module.has_weight,
        "late_cast": module.has_weight and not module.cast_x_before_out_mul,
    }
    yield _proposal(
        "rms_norm",
        module,
        host,
        facts=facts,
        residual=True,
        reads=("variance_epsilon", *(n for n in PLAIN_OPTIONS if n in own)),
        gated=f"{', '.join(other)}: the task has no such option" if other else "",
    )


def gemma_rms_norm(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """``GemmaRMSNorm`` and ``Gemma3RMSNorm``, which differ in the name of their epsilon."""
    eps = GEMMA.get(layer_class(module))
    if eps is not None:
        facts = {"hidden_size": module.weight.shape[0], "eps": vars(module)[eps]}
        yield _proposal("gemma_rms_norm", module, host, facts=facts, residual=True, reads=(eps,))


def layer_norm(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """``LayerNorm``, whose parameters are there even where it does not use them."""
    if layer_class(module) != "LayerNorm":
        return
    used = {"weight": bool(module.elementwise_affine), "bias": bool(module.use_bias)}
    facts = {"hidden_size": module.hidden_size, "eps": module.variance_epsilon, **used}
    yield _proposal("layer_norm", module, host, facts=facts, residual=None, reads=("variance_epsilon",))


def _proposal(
    task: str,
    module: nn.Module,
    host: Host,
    *,
    facts: Mapping[str, Any],
    residual: bool | None,
    reads: tuple[str, ...],
    gated: str = "",
) -> Proposal:
    names = [n for n in ("weight", "bias") if module._parameters.get(n) is not None]
    cls, device = layer_class(module), runs_on(host)[0]
    return Proposal(
        task=task,
        facts=facts,
        state={n: Param(n) for n in names if facts.get(n) is not False},
        enter=one_tensor if residual is None else enter,
        scenarios=scenarios(facts["hidden_size"], device, residual=bool(residual), empty=cls == "RMSNorm"),
        evidence="class",
        reads=reads,
        on_live_weights=True,
        runs_on=None if names else runs_on(host),
        gated=gated or invariance(host) or walked_around(module, host),
    )


def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
    """``(x, residual)``. Any other argument means more than the task says: a second addition, a quantised output, a
    backend by name. A linear layer that is not quantised asks for nothing."""
    if len(args) > 2 or len(kwargs) > 1 or "quant_linear" not in kwargs:
        kwargs = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        args = (kwargs.pop("x"), kwargs.pop("residual", None))
    for name, value in kwargs.items():
        if value is not None and not (name == "quant_linear" and unquantised(value)):
            return argument_reason(name, value)
    return args


def scenarios(
    width: int, device: torch.device, *, residual: bool, empty: bool
) -> Callable[[Draws], Iterator[Scenario]]:
    """Tokens of usual, large and small size, alone and with a residual; the engine's kernels write to both, so each
    call gets copies. ``empty``: no tokens too, as an idle rank of data-parallel attention sends."""

    def drawn(draw: Draws) -> Iterator[Scenario]:
        for salt, (rows, scale) in enumerate([(7, 1.0), (1, 40.0), (3, 1e-3), *([(0, 1.0)] if empty else [])]):
            x, other = (draw.normal(rows, width, scale=scale, salt=s).to(device) for s in (salt, 10 + salt))
            yield lambda forward, x=x: [forward(x.clone())]  # type: ignore[misc] # a default binds early
            if residual:

                def added(forward: Forward, x: torch.Tensor = x, other: torch.Tensor = other) -> list[torch.Tensor]:
                    return list(forward(x.clone(), other.clone()))

                yield added

    return drawn
