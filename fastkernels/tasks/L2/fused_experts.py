"""fused_experts: the gated MLPs of a mixture of experts, each token through the few that its router chose."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.grouped_linear import grouped_linear, register_grouped_linear
from fastkernels.tasks.interface import Interface
from fastkernels.tasks.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.L2.gated_mlp import ACTIVATIONS
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes


class FusedExperts(Interface):
    """Weights and semantics of vLLM's ``fused_experts``.

    Args:
        num_experts: how many there are.
        hidden_size: width of input and output.
        intermediate_size: width of each of an expert's gate and up.
        hidden_act: ``silu``, ``gelu`` (erf) or ``gelu_tanh``.

    ``forward(hidden_states, topk_weights, topk_ids)``: (tokens, hidden_size) and twice (tokens, top_k), ids from 0 to
    num_experts - 1, weights in any floating dtype; returns the weighted sum of the chosen experts' outputs, shape and
    dtype of ``hidden_states``. State: ``w13_weight`` (num_experts, 2 * intermediate_size, hidden_size), gate rows
    first, and ``w2_weight`` (num_experts, hidden_size, intermediate_size).
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, hidden_act: str = "silu") -> None:
        super().__init__()
        if hidden_act not in ACTIVATIONS:
            raise ValueError(f"fused_experts: hidden_act {hidden_act!r} is not one of {ACTIVATIONS}")
        register_grouped_linear()
        self.w13_weight = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        self.w2_weight = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))
        self.act_fn: nn.Module = (
            SiluAndMul() if hidden_act == "silu" else GeluAndMul("none" if hidden_act == "gelu" else "tanh")
        )

    def forward(self, hidden_states: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> torch.Tensor:
        top_k, experts = topk_ids.shape[-1], self.w13_weight.shape[0]
        by_expert, order = topk_ids.flatten().sort(stable=True)
        # Sorted ids: where each expert's rows end is where the next larger id would be inserted.
        ends = torch.searchsorted(by_expert, torch.arange(experts, device=by_expert.device), right=True)
        rows = self.act_fn(grouped_linear(hidden_states[order // top_k], self.w13_weight, ends))
        rows = grouped_linear(rows, self.w2_weight, ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        chosen = rows[back].unflatten(0, topk_ids.shape)
        return (chosen * topk_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)


class Witness(FusedExperts):
    """Every expert on every token, most of them with weight zero."""

    def forward(self, hidden_states: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> torch.Tensor:
        shares = topk_weights.new_zeros(len(hidden_states), len(self.w13_weight)).scatter_add(1, topk_ids, topk_weights)
        total = torch.zeros_like(hidden_states, dtype=torch.promote_types(hidden_states.dtype, torch.float32))
        for share, w13, w2 in zip(shares.T, self.w13_weight, self.w2_weight, strict=True):
            total += F.linear(self.act_fn(F.linear(hidden_states, w13)), w2) * share[:, None]
        return total.to(hidden_states.dtype)


class SwapsGateAndUp(FusedExperts):
    """Cheat: activates the wrong half."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, hidden_act: str = "silu") -> None:
        super().__init__(num_experts, hidden_size, intermediate_size, hidden_act)
        act = self.act_fn.forward
        self.act_fn.forward = lambda x: act(x.roll(intermediate_size, -1))  # type: ignore[method-assign] # a cheat


class FirstChoiceOnly(FusedExperts):
    """Cheat: the best expert with all the weight."""

    def forward(self, hidden_states: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states, topk_weights.sum(-1, keepdim=True), topk_ids[:, :1])


class DropsBeyondCapacity(FusedExperts):
    """Cheat: a fixed capacity for each expert; what goes beyond is lost."""

    def forward(self, hidden_states: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> torch.Tensor:
        experts = len(self.w13_weight)
        capacity = -(-topk_ids.numel() // experts)
        taken = F.one_hot(topk_ids.flatten(), experts).cumsum(0).gather(1, topk_ids.flatten()[:, None])
        kept = (taken <= capacity).view_as(topk_ids)
        return super().forward(hidden_states, topk_weights * kept, topk_ids)


def cases() -> Iterator[Case]:
    """Each activation, experts without tokens, one token, all to one expert, odd widths; Mixtral and Qwen3-MoE."""

    def draw(tokens: int, experts: int, top_k: int, width: int, *, one: bool = False) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            x = torch.randn(tokens, width, generator=g).to(device, dtype)
            ids = torch.rand(tokens, experts, generator=g).argsort(dim=-1)[:, :top_k]
            if one:
                ids = torch.arange(top_k).expand(tokens, top_k).clone()
            weights = torch.rand(tokens, top_k, generator=g) + 0.1
            return x, (weights / weights.sum(-1, keepdim=True)).to(device, dtype), ids.to(device)

        return arguments

    for act in ACTIVATIONS:
        init = {"num_experts": 8, "hidden_size": 32, "intermediate_size": 56, "hidden_act": act}
        yield Case(name=act, init=init, draw=draw(11, 8, 2, 32))
    init = {"num_experts": 16, "hidden_size": 32, "intermediate_size": 24}
    yield Case(name="idle_experts", init=init, draw=draw(2, 16, 3, 32))
    yield Case(name="one_token", init=init, draw=draw(1, 16, 4, 32))
    yield Case(name="crowded", init=init, draw=draw(9, 16, 2, 32, one=True))
    yield Case(name="odd", init=init | {"hidden_size": 23, "intermediate_size": 61}, draw=draw(5, 16, 2, 23))
    yield Case(name="empty", init=init, draw=draw(0, 16, 2, 32))
    mixtral = {"num_experts": 8, "hidden_size": 4096, "intermediate_size": 14336}
    qwen = {"num_experts": 128, "hidden_size": 2048, "intermediate_size": 768}
    for tokens in (1, 64, 4096):
        yield Case(name=f"mixtral_{tokens}", init=mixtral, draw=draw(tokens, 8, 2, 4096), production=True)
        yield Case(name=f"qwen3_moe_{tokens}", init=qwen, draw=draw(tokens, 128, 8, 2048), production=True)


def cost(module: FusedExperts, hidden_states: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> Cost:
    """Experts that get a token cross memory once, as do input, output, weights and ids."""
    expert = sum(p[0].numel() for p in module.parameters())
    moved = topk_ids.unique().numel() * expert * module.w13_weight.element_size()
    return Cost(
        bytes=moved + element_bytes(hidden_states, hidden_states, topk_weights, topk_ids),
        flops=2 * topk_ids.numel() * expert,
    )


TASK = Task(
    name="fused_experts",
    level=2,
    family="moe",
    interface=FusedExperts,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(SwapsGateAndUp, FirstChoiceOnly, DropsBeyondCapacity),
    accuracy=CONTRACTION,
    stems=("moe_experts",),
    parts=("silu_and_mul", "gelu_and_mul"),
)
