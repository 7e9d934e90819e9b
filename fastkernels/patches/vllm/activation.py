"""vLLM's activations: the gates of gated MLPs, which take both halves in one tensor, and plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from fastkernels.patches.fingerprint import known_class
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Proposal, Scenario, one_tensor
from fastkernels.patches.vllm.engine import closed, gated, placement
from fastkernels.patches.vllm.norms import VALUES
from fastkernels.patches.vllm.owners import passed_over

FILE = "vllm.model_executor.layers.activation:"
# Class, task, constructor facts (``approximate`` of a gated GELU is the module's own).
KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("SiluAndMul", "silu_and_mul", {}),
    ("GeluAndMul", "gelu_and_mul", {}),
    ("GELU", "gelu", {"approximate": "none"}),
    ("GELUTanh", "gelu", {"approximate": "tanh"}),
    ("NewGELU", "gelu", {"approximate": "tanh"}),
    ("FastGELU", "gelu", {"approximate": "tanh"}),
    ("QuickGELU", "quick_gelu", {}),
    ("ReLUSquaredActivation", "squared_relu", {}),
)


def activation(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Modules of the classes in ``KINDS``."""
    kind = next(((task, facts) for name, task, facts in KINDS if runs_as(module, name)), None)
    if kind is None:
        return
    task, facts = kind
    if task == "gelu_and_mul":
        facts = {"approximate": module.approximate}
    reason = closed(module, host) or passed_over(module, host)
    if reason:
        yield gated(task, reason)
        return

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        for salt, (rows, scale) in enumerate(VALUES):
            x = draw.normal(rows, 256, scale=scale, salt=salt)
            yield lambda forward, x=x: [forward(x.clone())]  # type: ignore[misc] # a default binds x early

    yield Proposal(
        task=task,
        facts=facts,
        state={},
        enter=one_tensor,
        scenarios=scenarios,
        evidence="class",
        reads=tuple(n for n in ("approximate",) if n in module.__dict__),
        on_live_weights=True,
        runs_on=placement(host),
    )


def runs_as(module: nn.Module, name: str) -> bool:
    """Exactly this class of the activation file: each of its relatives computes something else."""
    return type(module) is known_class(FILE + name)


def gate_kind(module: nn.Module | None) -> str | None:
    """Which activation of task ``gated_mlp`` the module is, or None."""
    if module is None:
        return None
    if runs_as(module, "SiluAndMul"):
        return "silu"
    if runs_as(module, "GeluAndMul"):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return None
