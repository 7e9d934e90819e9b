"""topk_softmax: the routing of a mixture of experts, softmax over all experts, then the best few of each token.

Drawn logits are distinct within a token, in bfloat16 too, so that ids have one right answer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastkernels.tasks.interface import Interface, compute_dtype
from fastkernels.tasks.task import Case, Cost, Draw, Task, element_bytes

STEPS = 512  # distinct logits, of which a token gets as many as there are experts


class TopkSoftmax(Interface):
    """Semantics of vLLM's ``topk_softmax``.

    Args:
        top_k: experts kept for each token.
        renormalize: divide the kept weights by their sum.

    ``forward(gating_output)``: (tokens, experts) to ``(weights, ids)``, both (tokens, top_k), largest first; weights
    in float32 (float64 for float64 input), ids int64. The order among equal logits is free.
    """

    def __init__(self, top_k: int, renormalize: bool = True) -> None:
        super().__init__()
        self.top_k = top_k
        self.renormalize = renormalize

    def forward(self, gating_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares = F.softmax(gating_output, dim=-1, dtype=compute_dtype(gating_output))
        weights, ids = torch.topk(shares, self.top_k, dim=-1)
        return (weights / weights.sum(-1, keepdim=True) if self.renormalize else weights), ids


class Witness(TopkSoftmax):
    """Sorts the logits first; the softmax only of those kept, over their own sum or everyone's."""

    def forward(self, gating_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, ids = gating_output.to(compute_dtype(gating_output)).sort(dim=-1, descending=True)
        logits = logits - logits[..., :1]
        kept = logits[..., : self.top_k]
        total = (kept if self.renormalize else logits).logsumexp(-1, keepdim=True)
        return torch.exp(kept - total), ids[..., : self.top_k]


class OtherNormalisation(TopkSoftmax):
    """Cheat: renormalises where it should not, and the reverse."""

    def __init__(self, top_k: int, renormalize: bool = True) -> None:
        super().__init__(top_k, not renormalize)


class Sigmoid(TopkSoftmax):
    """Cheat: the same experts with sigmoid weights."""

    def forward(self, gating_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = torch.topk(torch.sigmoid(gating_output.to(compute_dtype(gating_output))), self.top_k, dim=-1)
        return (weights / weights.sum(-1, keepdim=True) if self.renormalize else weights), ids


class KeepsTheFirst(TopkSoftmax):
    """Cheat: no search, the first experts."""

    def forward(self, gating_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = F.softmax(gating_output, dim=-1, dtype=compute_dtype(gating_output))[..., : self.top_k]
        ids = torch.arange(self.top_k, device=weights.device).expand(weights.shape)
        return (weights / weights.sum(-1, keepdim=True) if self.renormalize else weights), ids


def cases() -> Iterator[Case]:
    """Few and many experts, one and all of them kept, no tokens; Mixtral, Qwen3-MoE and gpt-oss."""

    def draw(tokens: int, experts: int, *, spread: float = 8.0) -> Draw:
        def arguments(g: torch.Generator, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
            # Each token's own choice of STEPS levels, which stay apart in bfloat16; all of them, and every token would
            # have the same weights.
            levels = torch.rand(tokens, STEPS, generator=g).argsort(dim=-1)[:, :experts]
            return (((levels / STEPS - 0.5) * spread).to(device, dtype),)

        return arguments

    for renormalize in (True, False):
        for name, (tokens, experts, top_k) in {
            "few": (5, 8, 2),
            "many": (7, 128, 8),
            "odd": (3, 60, 6),
            "one_kept": (4, 16, 1),
            "all_kept": (4, 8, 8),
            "empty": (0, 8, 2),
        }.items():
            init = {"top_k": top_k, "renormalize": renormalize}
            yield Case(name=name if renormalize else f"{name}_raw", init=init, draw=draw(tokens, experts))
    yield Case(name="large_values", init={"top_k": 4}, draw=draw(5, 32, spread=512.0))
    for name, (experts, top_k) in {"mixtral": (8, 2), "qwen3_moe": (128, 8), "gpt_oss": (32, 4)}.items():
        for tokens in (1, 64, 2048, 16384):
            yield Case(name=f"{name}_{tokens}", init={"top_k": top_k}, draw=draw(tokens, experts), production=True)


def cost(module: TopkSoftmax, gating_output: torch.Tensor) -> Cost:
    """Logits read once, a weight and an id written for each kept expert; about five operations a logit."""
    kept = gating_output.numel() // gating_output.shape[-1] * module.top_k
    written = kept * (compute_dtype(gating_output).itemsize + torch.int64.itemsize)
    return Cost(bytes=element_bytes(gating_output) + written, flops=5 * gating_output.numel())


TASK = Task(
    name="topk_softmax",
    level=1,
    family="moe",
    interface=TopkSoftmax,
    cases=cases,
    cost=cost,
    witness=Witness,
    anti_witnesses=(OtherNormalisation, Sigmoid, KeepsTheFirst),
)
