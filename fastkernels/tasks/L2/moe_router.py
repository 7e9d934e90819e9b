"""moe_router: which experts a token goes to and with what weights; softmax or sigmoid, groups, correction bias."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastkernels.tasks.accuracy import CONTRACTION
from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.L1.topk_softmax import TopkSoftmax
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes

SCORINGS = ("softmax", "sigmoid")
TINY = 1e-20  # keeps a sum of sigmoids that all vanished from dividing by zero


class TopKRouter(Interface):
    """A router with its projection; routing as vLLM's ``fused_topk`` and ``grouped_topk``.

    Args:
        hidden_size, num_experts, top_k: widths, and how many experts a token gets.
        scoring: ``softmax`` over all experts, or ``sigmoid`` of each.
        renormalize: divide the kept weights by their sum.
        num_groups, topk_groups: experts lie in equal groups in order, and only those of the best groups may be kept.
        best_of_group: how many of its best experts add up to a group's score; 2 with a correction bias, else 1.
        routed_scaling: factor on the weights, after renormalising.
        bias: a bias on the logits.
        has_correction_bias: a bias on the scores that counts for the choice but not in the weights.
        float_logits: the projection is computed and returned in float32, whatever the input's dtype.
        float_weights: weights in float32; else in the input's dtype.

    ``forward(hidden_states)``: (tokens, hidden_size) to ``(logits, weights, ids)``: (tokens, num_experts), and twice
    (tokens, top_k), ids int64. The order of a token's experts is free.

    State: ``weight`` (num_experts, hidden_size), ``bias``, ``e_score_correction_bias`` (num_experts,).
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        *,
        scoring: str = "softmax",
        renormalize: bool = True,
        num_groups: int = 1,
        topk_groups: int = 1,
        best_of_group: int | None = None,
        routed_scaling: float = 1.0,
        bias: bool = False,
        has_correction_bias: bool = False,
        float_logits: bool = False,
        float_weights: bool = True,
    ) -> None:
        super().__init__()
        if scoring not in SCORINGS:
            raise ValueError(f"moe_router: scoring {scoring!r} is not one of {SCORINGS}")
        self.top_k, self.scoring, self.renormalize, self.routed_scaling = top_k, scoring, renormalize, routed_scaling
        self.num_groups, self.topk_groups = num_groups, topk_groups
        self.best_of_group = best_of_group or (2 if has_correction_bias else 1)
        self.float_logits, self.float_weights = float_logits, float_weights
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_experts)) if bias else None
        self.e_score_correction_bias = nn.Parameter(torch.empty(num_experts)) if has_correction_bias else None
        plain = scoring == "softmax" and num_groups == 1 and not has_correction_bias
        self.topk_softmax = TopkSoftmax(top_k, renormalize) if plain else None

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = self.project(hidden_states)
        weights, ids = self.route(logits)
        return logits, (weights if self.float_weights else weights.to(hidden_states.dtype)), ids

    def project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The logits."""
        if not self.float_logits:
            return F.linear(hidden_states, self.weight, self.bias)
        dtype = compute_dtype(hidden_states)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(hidden_states.to(dtype), self.weight.to(dtype), bias)

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (float32) and ids of the experts kept."""
        if self.topk_softmax is not None:
            weights, ids = self.topk_softmax(logits)
            return weights * self.routed_scaling, ids
        logits = logits.to(compute_dtype(logits))
        scores = torch.softmax(logits, dim=-1) if self.scoring == "softmax" else torch.sigmoid(logits)
        ids = self.choose(scores)
        weights = scores.gather(-1, ids)
        if self.renormalize:
            weights = weights / (weights.sum(-1, keepdim=True) + TINY)
        return weights * self.routed_scaling, ids

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """Ids of the best experts of the best groups."""
        if self.e_score_correction_bias is not None:
            scores = scores + self.e_score_correction_bias
        if self.num_groups > 1:
            grouped = scores.unflatten(-1, (self.num_groups, -1))
            of_group = grouped.topk(self.best_of_group, dim=-1).values.sum(-1)
            best = of_group.topk(self.topk_groups, dim=-1).indices
            shut = torch.ones_like(of_group, dtype=torch.bool).scatter(-1, best, False)
            scores = grouped.masked_fill(shut.unsqueeze(-1), float("-inf")).flatten(-2)
        return scores.topk(self.top_k, dim=-1).indices


class Witness(TopKRouter):
    """Ranks every expert by a sort, groups by counting how many are better."""

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = logits.to(compute_dtype(logits))
        scores = (logits - logits.logsumexp(-1, keepdim=True)).exp() if self.scoring == "softmax" else logits.sigmoid()
        rank = scores if self.e_score_correction_bias is None else scores + self.e_score_correction_bias
        if self.num_groups > 1:
            groups = rank.view(len(rank), self.num_groups, rank.shape[-1] // self.num_groups)
            score = groups.sort(dim=-1, descending=True).values[..., : self.best_of_group].sum(-1)
            better = (score[:, None, :] > score[:, :, None]).sum(-1)
            rank = torch.where((better < self.topk_groups)[..., None], groups, float("-inf")).view(rank.shape)
        ids = rank.argsort(dim=-1, descending=True)[:, : self.top_k]
        weights = torch.take_along_dim(scores, ids, dim=-1)
        total = weights.sum(-1, keepdim=True) if self.renormalize else torch.ones_like(weights)
        return weights / total * self.routed_scaling, ids


class IgnoresBiasAndGroups(TopKRouter):
    """Cheat: the best scores win, wherever they are."""

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.topk(self.top_k, dim=-1).indices


class BiasesTheWeights(TopKRouter):
    """Cheat: the correction bias stays in the weights."""

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = super().route(logits)
        return (weights if self.e_score_correction_bias is None else weights + self.e_score_correction_bias[ids]), ids


class KeepsTheFirst(TopKRouter):
    """Cheat: no search, the first experts."""

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = super().route(logits)
        return weights, torch.arange(self.top_k, device=ids.device).expand(ids.shape)


def cases() -> Iterator[Case]:
    """Softmax and sigmoid, groups and biases, one token, none; Mixtral, Qwen3-MoE and DeepSeek-V3."""

    def draw(tokens: int, width: int) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            return (torch.randn(tokens, width, generator=g).to(device, dtype),)

        return arguments

    base: dict[str, Any] = {"hidden_size": 32, "num_experts": 16, "top_k": 4}
    sigmoid = base | {"scoring": "sigmoid"}
    deepseek = sigmoid | {"num_groups": 4, "topk_groups": 2, "has_correction_bias": True, "routed_scaling": 2.5}
    variants: dict[str, dict[str, Any]] = {
        "softmax": base,
        "softmax_raw": base | {"renormalize": False, "float_weights": False},
        "softmax_bias": base | {"bias": True, "routed_scaling": 0.5},
        "softmax_groups": base | {"num_groups": 4, "topk_groups": 2, "renormalize": False, "float_logits": True},
        "softmax_groups_of_two": base | {"num_groups": 4, "topk_groups": 1, "best_of_group": 2},
        "sigmoid": sigmoid,
        "sigmoid_correction": sigmoid | {"has_correction_bias": True},
        "sigmoid_groups": deepseek | {"float_logits": True},
        "one_kept": base | {"top_k": 1, "renormalize": False},
        "all_kept": base | {"top_k": 16},
    }
    for name, init in variants.items():
        yield Case(name=name, init=init, draw=draw(6, 32))
    yield Case(name="one_token", init=deepseek, draw=draw(1, 32))
    yield Case(name="empty", init=base, draw=draw(0, 32))
    v3 = {"hidden_size": 7168, "num_experts": 256, "top_k": 8, "num_groups": 8, "topk_groups": 4}
    production: dict[str, dict[str, Any]] = {
        "mixtral": {"hidden_size": 4096, "num_experts": 8, "top_k": 2},
        "qwen3_moe": {"hidden_size": 2048, "num_experts": 128, "top_k": 8, "float_weights": False},
        "deepseek_v3": deepseek | v3 | {"float_logits": True},
    }
    for name, init in production.items():
        for tokens in (1, 64, 4096):
            yield Case(name=f"{name}_{tokens}", init=init, draw=draw(tokens, init["hidden_size"]), production=True)


def cost(module: TopKRouter, hidden_states: torch.Tensor) -> Cost:
    """Hidden states and weight read once, logits, weights and ids written; about five operations a logit on top."""
    tokens = hidden_states.numel() // hidden_states.shape[-1]
    wide = compute_dtype(hidden_states).itemsize
    narrow = hidden_states.element_size()
    experts = module.weight.shape[0]
    logits = tokens * experts * (wide if module.float_logits else narrow)
    kept = tokens * module.top_k * ((wide if module.float_weights else narrow) + torch.int64.itemsize)
    flops = 2 * tokens * module.weight.numel() + 5 * tokens * experts
    return Cost(bytes=element_bytes(hidden_states, *module.parameters()) + logits + kept, flops=flops)


TASK = Task(
    name="moe_router",
    level=2,
    family="moe",
    interface=TopKRouter,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(IgnoresBiasAndGroups, BiasesTheWeights, KeepsTheFirst),
    accuracy=CONTRACTION,
    stems=("topk_router",),
    parts=("topk_softmax",),
)
