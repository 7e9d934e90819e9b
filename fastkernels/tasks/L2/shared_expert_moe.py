"""shared_expert_moe: a sparse mixture of experts, router and experts together, with a shared expert or without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L2.fused_experts import FusedExperts
from fastkernels.tasks.L2.gated_mlp import LlamaMLP
from fastkernels.tasks.L2.moe_router import TopKRouter
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes


class SharedExpertMoE(Interface):
    """State names as vLLM's ``Qwen2MoeSparseMoeBlock``.

    Args:
        hidden_size, intermediate_size, num_experts, top_k: of the routed experts.
        shared_intermediate_size: width of the shared expert that every token passes; 0 for none.
        shared_gate: the shared expert's output is multiplied by the sigmoid of a linear of the token.
        hidden_act: of all experts: ``silu``, ``gelu`` (erf) or ``gelu_tanh``.
        scoring, renormalize, num_groups, topk_groups, best_of_group, routed_scaling, router_bias,
        has_correction_bias, float_logits, float_weights: as task ``moe_router`` takes them.

    ``forward(hidden_states)``: (..., hidden_size) to the same shape and dtype. State: ``gate.weight``, ``gate.bias``,
    ``gate.e_score_correction_bias``, ``experts.w13_weight``, ``experts.w2_weight``,
    ``shared_expert.gate_up_proj.weight``, ``shared_expert.down_proj.weight``, ``shared_expert_gate.weight``.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        *,
        shared_intermediate_size: int = 0,
        shared_gate: bool = False,
        hidden_act: str = "silu",
        scoring: str = "softmax",
        renormalize: bool = True,
        num_groups: int = 1,
        topk_groups: int = 1,
        best_of_group: int | None = None,
        routed_scaling: float = 1.0,
        router_bias: bool = False,
        has_correction_bias: bool = False,
        float_logits: bool = False,
        float_weights: bool = True,
    ) -> None:
        super().__init__()
        self.gate = TopKRouter(
            hidden_size,
            num_experts,
            top_k,
            scoring=scoring,
            renormalize=renormalize,
            num_groups=num_groups,
            topk_groups=topk_groups,
            best_of_group=best_of_group,
            routed_scaling=routed_scaling,
            bias=router_bias,
            has_correction_bias=has_correction_bias,
            float_logits=float_logits,
            float_weights=float_weights,
        )
        self.experts = FusedExperts(num_experts, hidden_size, intermediate_size, hidden_act)
        shared = shared_intermediate_size
        self.shared_expert = LlamaMLP(hidden_size, shared, hidden_act) if shared else None
        self.shared_expert_gate = Linear(hidden_size, 1, bias=False) if shared and shared_gate else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.flatten(0, -2)
        _, weights, ids = self.gate(tokens)
        out = self.experts(tokens, weights, ids)
        if self.shared_expert is not None:
            shared = self.shared_expert(tokens)
            if self.shared_expert_gate is not None:
                shared = torch.sigmoid(self.shared_expert_gate(tokens)) * shared
            out = out + shared
        return out.view(hidden_states.shape)


class Witness(SharedExpertMoE):
    """The shared expert first, then for each choice of the router the rows of its experts on top."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, ids = self.gate(tokens)
        out = torch.zeros_like(tokens, dtype=torch.promote_types(tokens.dtype, torch.float32))
        if self.shared_expert is not None:
            gate = 1.0 if self.shared_expert_gate is None else self.shared_expert_gate(tokens).float().sigmoid()
            out = out + self.shared_expert(tokens) * gate
        for choice in range(ids.shape[-1]):
            out = out + self.experts(tokens, weights[:, choice, None], ids[:, choice, None])
        return out.to(tokens.dtype).view(hidden_states.shape)


class SkipsTheShared(SharedExpertMoE):
    """Cheat: routed experts only."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.flatten(0, -2)
        _, weights, ids = self.gate(tokens)
        return self.experts(tokens, weights, ids).view(hidden_states.shape)


class RoutesByTheFirstToken(SharedExpertMoE):
    """Cheat: one choice of experts for all tokens."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.flatten(0, -2)
        _, weights, ids = (t[:1].expand(len(tokens), -1) for t in self.gate(tokens))
        out = super().forward(hidden_states).flatten(0, -2) - self.experts(tokens, *self.gate(tokens)[1:])
        return (out + self.experts(tokens, weights, ids)).view(hidden_states.shape)


class ForgetsTheScaling(SharedExpertMoE):
    """Cheat: weights as the router's scores have them."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.gate.routed_scaling = 1.0
        return super().forward(hidden_states)


def cases() -> Iterator[Case]:
    """Mixtral-like, gated shared expert, DeepSeek's groups and scaling, one token, none; production sizes."""

    def draw(*shape: int) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            return (torch.randn(*shape, generator=g).to(device, dtype),)

        return arguments

    base: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 24, "num_experts": 8, "top_k": 2}
    v3_routing = {"scoring": "sigmoid", "has_correction_bias": True, "routed_scaling": 2.5, "float_logits": True}
    gated = base | {"shared_intermediate_size": 40, "shared_gate": True, "renormalize": False, "float_weights": False}
    deepseek = base | v3_routing | {"shared_intermediate_size": 24, "num_groups": 4, "topk_groups": 2}
    yield Case(name="routed_only", init=base, draw=draw(2, 5, 32))
    yield Case(name="shared", init=base | {"shared_intermediate_size": 40}, draw=draw(2, 5, 32))
    yield Case(name="shared_gate", init=gated, draw=draw(2, 5, 32))
    yield Case(name="deepseek", init=deepseek, draw=draw(2, 5, 32))
    yield Case(name="gelu_bias", init=base | {"hidden_act": "gelu", "router_bias": True}, draw=draw(7, 32))
    yield Case(name="one_token", init=gated, draw=draw(1, 1, 32))
    yield Case(name="empty", init=base, draw=draw(0, 3, 32))
    production: dict[str, dict[str, Any]] = {
        "mixtral": {"hidden_size": 4096, "intermediate_size": 14336, "num_experts": 8, "top_k": 2},
        "qwen2_moe": gated
        | {"hidden_size": 2048, "intermediate_size": 1408, "num_experts": 60, "top_k": 4}
        | {"shared_intermediate_size": 5632},
        "glm4_moe_air": v3_routing
        | {"hidden_size": 4096, "intermediate_size": 1408, "num_experts": 128, "top_k": 8, "routed_scaling": 1.0}
        | {"shared_intermediate_size": 1408},
    }
    for name, init in production.items():
        for tokens in (1, 64, 4096):
            yield Case(name=f"{name}_{tokens}", init=init, draw=draw(1, tokens, init["hidden_size"]), production=True)


def cost(module: SharedExpertMoE, hidden_states: torch.Tensor) -> Cost:
    """Hidden states in and out once, dense weights once, and the experts that a token is routed to."""
    tokens = hidden_states.numel() // hidden_states.shape[-1]
    expert = sum(p[0].numel() for p in module.experts.parameters())
    with torch.no_grad():
        ids = module.gate(hidden_states.flatten(0, -2))[-1]
    dense = [p for n, p in module.named_parameters() if n.startswith("shared_expert")]
    routing = 2 * tokens * module.gate.weight.numel()
    matrices = module.gate.top_k * expert + sum(p.numel() for p in dense)
    moved = element_bytes(hidden_states, hidden_states, *dense, *module.gate.parameters())
    moved += ids.unique().numel() * expert * module.experts.w13_weight.element_size()
    return Cost(bytes=moved, flops=routing + 2 * tokens * matrices)


TASK = Task(
    name="shared_expert_moe",
    level=2,
    family="moe",
    interface=SharedExpertMoE,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(SkipsTheShared, RoutesByTheFirstToken, ForgetsTheScaling),
    accuracy=CONTRACTION,
    stems=("sparse_moe_block",),
    parts=("moe_router", "fused_experts", "gated_mlp", "linear"),
)
