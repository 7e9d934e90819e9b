"""One rank of ``test_tensor_parallel``: vLLM's layers with random weights, as they are and patched; prints JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import nn

import fastkernels
from fastkernels.errors import PatchError
from fastkernels.patches.vllm.context import call_context
from fastkernels.patches.vllm.cpu_weights import keep_weights
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L2.gated_mlp import LlamaMLP
from fastkernels.tasks.L2.shared_expert_moe import SharedExpertMoE

HIDDEN, INNER, EXPERTS = 64, 128, 4


class WrongLinear(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1.05


class WrongMLP(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1.05


class WrongMoE(SharedExpertMoE):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) * 1.05


WRONG = {"linear": WrongLinear, "gated_mlp": WrongMLP, "shared_expert_moe": WrongMoE}


def layers() -> nn.ModuleDict:
    """One of each kind that crosses ranks in its own way."""
    from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.model_executor.models.llama import LlamaMLP as EngineMLP
    from vllm.model_executor.models.mixtral import MixtralMoE

    return nn.ModuleDict(
        {
            "qkv": QKVParallelLinear(HIDDEN, 16, 4, 2, bias=True),
            "gathered": ColumnParallelLinear(HIDDEN, INNER, bias=False, gather_output=True),
            "row": RowParallelLinear(INNER, HIDDEN, bias=False),
            "row_of_whole": RowParallelLinear(INNER, HIDDEN, bias=False, input_is_parallel=False),
            "row_with_bias": RowParallelLinear(INNER, HIDDEN, bias=True),
            "unreduced": RowParallelLinear(INNER, HIDDEN, bias=False, reduce_results=False, return_bias=False),
            "mlp": EngineMLP(HIDDEN, INNER, "silu"),
            "biased_mlp": EngineMLP(HIDDEN, INNER, "silu", bias=True),
            "embedding": VocabParallelEmbedding(320, HIDDEN),
            "moe": MixtralMoE(EXPERTS, 2, HIDDEN, INNER, prefix="moe"),
        }
    )


def fill(model: nn.Module, rank: int) -> None:
    """Weights of this rank's shares; what every rank holds whole (norms, routers, biases of sums) is the same."""
    for name, parameter in model.named_parameters():
        whole = name in ("moe.gate.weight", "row_with_bias.bias", "biased_mlp.down_proj.bias")
        generator = torch.Generator().manual_seed(hash_of(name) + (0 if whole else 1000 * (rank + 1)))
        values = torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 1) ** 0.5
        parameter.data.copy_(values)
    for part in model.modules():
        method = getattr(part, "quant_method", None)
        if method is not None:
            method.process_weights_after_loading(part)


def hash_of(name: str) -> int:
    return sum(ord(c) * (i + 1) for i, c in enumerate(name))


def widths() -> dict[str, int]:
    return {"row_of_whole": INNER} | dict.fromkeys(("row", "row_with_bias", "unreduced"), INNER // 2)


def outputs(model: nn.ModuleDict) -> dict[str, list[torch.Tensor]]:
    found = {}
    for name, layer in model.items():
        generator = torch.Generator().manual_seed(7)
        given = torch.randn(5, widths().get(name, HIDDEN), generator=generator)
        out: Any = layer(torch.arange(5)) if name == "embedding" else layer(given)
        found[name] = [t for t in (out if isinstance(out, tuple) else (out,)) if t is not None]
    return found


def main(rank: int, ranks: int, port: int) -> None:
    keep_weights()
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    config = VllmConfig()
    config.parallel_config.tensor_parallel_size = ranks
    with set_current_vllm_config(config), torch.no_grad():
        init_distributed_environment(ranks, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
        initialize_model_parallel(ranks)
        model = layers()
        fill(model, rank)
    told: dict[str, dict[str, Any]] = {}
    with call_context(config), torch.no_grad():
        before = outputs(model)
        handle = fastkernels.patch(model, "reference", select=[*model], on_miss="report")
        after = outputs(model)
        for site in handle.report.sites:
            if site.path in model:
                pairs = zip(before[site.path], after[site.path], strict=True)
                distance = max(float((a - b).abs().max() / b.abs().max()) for b, a in pairs)
                told[site.path] = {"state": site.state, "reason": site.reason, "calls": site.calls}
                told[site.path] |= {"task": site.task, "distance": distance}
        handle.unpatch()
        for path in ("row", "mlp", "moe", "gathered"):
            task = told[path]["task"]
            try:
                fastkernels.patch(model, {task: WRONG[task]}, select=path)
            except PatchError as error:
                told[path]["refused"] = str(error)
    sys.stdout.write(f"{json.dumps(told)}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
