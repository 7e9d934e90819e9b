"""Traces modules of one tiny engine, patched with candidates that leave a mark in the graph; prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastkernels
from fastkernels.patches.vllm.context import call_context
from fastkernels.tasks import all_tasks
from tests.engines.offline_vllm import offline_vllm
from tests.engines.tiny import make
from tests.patches.vllm.test_tracing import PATHS


def marked(interface: type[nn.Module]) -> type[nn.Module]:
    """The reference, its first tensor through an operator that changes nothing and that none of them has."""

    def forward(self: nn.Module, *args: Any) -> Any:
        out = interface.forward(self, *args)
        if isinstance(out, tuple):
            return torch.fmax(out[0], out[0]), *out[1:]
        return torch.fmax(out, out)

    return type(interface.__name__, (interface,), {"forward": forward})


def arguments(path: str, model: nn.Module) -> tuple[torch.Tensor, ...]:
    leaf = path.rpartition(".")[2]
    if leaf == "embed_tokens":
        return (torch.tensor([3, 319, 0], dtype=torch.int32),)
    if leaf == "rotary_emb":
        return torch.arange(6), torch.randn(6, 128), torch.randn(6, 64)
    if leaf == "act_fn":
        return (torch.randn(6, 512),)
    if leaf == "input_layernorm":
        return torch.randn(6, 128), torch.randn(6, 128)
    return (torch.randn(6, 128),)


def flat(result: Any) -> list[torch.Tensor]:
    return [t for t in (result if isinstance(result, tuple) else (result,)) if t is not None]


def main(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    told = {}
    with offline_vllm(make(folder, name), folder / "cache") as engine, call_context(engine.config), torch.no_grad():
        for path in PATHS[name]:
            module, given = engine.model.get_submodule(path), arguments(path, engine.model)
            want = [t.clone() for t in flat(module(*(a.clone() for a in given)))]
            seen: list[str] = []

            def backend(graph: torch.fx.GraphModule, inputs: Any, seen: list[str] = seen) -> Any:
                seen += [str(node.target) for node in graph.graph.nodes]
                return graph.forward

            candidates = {n: marked(t.interface) for n, t in all_tasks().items() if t.level <= 2}
            with fastkernels.patch(engine.model, candidates, select=path, lowering="inline"):
                compiled = torch.compile(lambda *a, m=module: m(*a), fullgraph=True, backend=backend)
                got = flat(compiled(*(a.clone() for a in given)))
            distance = max(float((a - b).abs().max()) for a, b in zip(got, want, strict=True))
            told[path] = {"distance": distance, "marked": any("fmax" in target for target in seen)}
    sys.stdout.write(f"{json.dumps(told)}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
