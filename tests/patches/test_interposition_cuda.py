"""Proof of interposition on a GPU: kernels show by name, in replays too, where counters stand still."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fastkernels
from tests.patches.test_interposition import Norms

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@torch.no_grad()
def test_shipped_kernels_are_seen_by_name_in_eager_calls_and_in_replays_where_counters_stand_still():
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP, LlamaRMSNorm

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = LlamaRMSNorm(256)
            self.mlp = LlamaMLP(LlamaConfig(hidden_size=256, intermediate_size=512))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mlp(self.norm(x))

    model, x = Block().to("cuda", torch.bfloat16), torch.randn(8, 256, device="cuda", dtype=torch.bfloat16)
    own = {"rms_norm": "_rms_norm_kernel", "silu_and_mul": "_silu_and_mul_kernel"}  # too few rows for the MLP's own
    with fastkernels.patch(model, "shipped") as p:
        with p.observe() as eager:
            model(x)
        for task, kernel in own.items():
            assert (eager.result.tasks[task].how, eager.result.tasks[task].calls) == ("counter", 1)
            assert eager.result.tasks[task].kernels == {kernel: 1}

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(x)
        with p.observe() as replayed:
            for _ in range(3):
                graph.replay()
        for task, kernel in own.items():
            found = replayed.result.tasks[task]
            assert (found.how, found.calls, found.kernels) == ("kernel", 0, {kernel: 3})

        whole = replayed.result.tasks["gated_mlp"]
        assert (whole.how, whole.through, whole.kernels) == ("kernel", "silu_and_mul", {})
        replayed.result.require()

        with p.observe() as idle:
            torch.cuda.synchronize()
        assert set(own) <= set(idle.result.unproven)
        with p.observe() as library:  # products and elementwise kernels of torch's are nobody's
            torch.nn.functional.silu(x @ x.T)
        assert not any(e.kernels for e in library.result.tasks.values())


@torch.no_grad()
def test_a_kernel_name_that_two_candidates_share_proves_neither_in_a_replay(tmp_path):
    body = (
        "import torch, triton\nimport triton.language as tl\nfrom fastkernels.tasks.L1 import {stem}\n"
        "@triton.jit\ndef _kernel(x, out, N: tl.constexpr):\n"
        "    i = tl.arange(0, N)\n    tl.store(out + i, tl.load(x + i))\n"
        "class {name}({stem}.{name}):\n    def forward(self, x, residual=None):\n"
        "        copy = torch.empty_like(x)\n        _kernel[(x.numel() // 64,)](x, copy, 64)\n"
        "        return super().forward(x)\n"
    )
    (tmp_path / "L1").mkdir()
    for stem, name in (("rms_norm", "RMSNorm"), ("layer_norm", "LayerNorm")):
        (tmp_path / f"L1/{stem}.py").write_text(body.format(stem=stem, name=name))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.RMSNorm(64, eps=1e-6), nn.LayerNorm(64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    model, x = Both().cuda(), torch.randn(4, 64, device="cuda")
    with fastkernels.patch(model, tmp_path) as p:
        with p.observe() as eager:
            model(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(x)
        with p.observe() as replayed:
            graph.replay()
    assert [e.how for e in eager.result.tasks.values()] == ["counter", "counter"]
    assert set(replayed.result.unproven) == {"rms_norm", "layer_norm"}
    assert "shared with L1/layer_norm.py" in replayed.result.tasks["rms_norm"].why_not


@torch.no_grad()
def test_a_kernel_of_an_inlined_candidate_proves_a_compiled_call():
    model, x = Norms().to("cuda", torch.bfloat16), torch.randn(8, 64, device="cuda", dtype=torch.bfloat16)
    with fastkernels.patch(model, "shipped", lowering="inline") as p:
        compiled = torch.compile(model)
        compiled(x)
        with p.observe() as seen:
            compiled(x)
    found = seen.result.tasks["rms_norm"]
    assert (found.how, found.calls, found.kernels) == ("kernel", 0, {"_rms_norm_kernel": 2})
