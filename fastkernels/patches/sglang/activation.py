"""Gated activations of SGLang: ``SiluAndMul`` and ``GeluAndMul`` in both of its formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.bypass import walked_around
from fastkernels.patches.sglang.running import invariance, layer_class, runs_on
from fastkernels.patches.site import Draws, Proposal, Scenario, one_tensor

WIDTH = 128  # of each half; the engine's kernels want a multiple of their vectors


def gated_activation(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Exact classes: each has one task."""
    kind = layer_class(module)
    if kind not in ("SiluAndMul", "GeluAndMul"):
        return
    gelu = kind == "GeluAndMul"
    facts: dict[str, Any] = {"approximate": module.approximate} if gelu else {}
    yield Proposal(
        task="gelu_and_mul" if gelu else "silu_and_mul",
        facts=facts,
        state={},
        enter=one_tensor,
        scenarios=scenarios(runs_on(host)[0]),
        evidence="class",
        reads=tuple(facts),
        on_live_weights=True,
        runs_on=runs_on(host),
        gated=invariance(host) or walked_around(module, host),
    )


def scenarios(device: torch.device) -> Callable[[Draws], Iterator[Scenario]]:
    """Tokens of usual, large and small size, on the model's device, which the module has no tensor to tell."""

    def drawn(draw: Draws) -> Iterator[Scenario]:
        for salt, (rows, scale) in enumerate([(7, 1.0), (1, 20.0), (3, 1e-2)]):
            x = draw.normal(rows, 2 * WIDTH, scale=scale, salt=salt).to(device)
            yield lambda forward, x=x: [forward(x.clone())]  # type: ignore[misc] # a default binds x early

    return drawn
