"""Operators that show their kernels: which may, what the compiler behind Dynamo then sees, and what runs on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from fastkernels.runtime.fake import reference_for, slots_of
from fastkernels.runtime.load import load_file, shipped_folder
from fastkernels.runtime.lowering import Lowered, lower
from fastkernels.runtime.transparent import KERNEL, _traced, hidden
from fastkernels.tasks import get_task
from fastkernels.tasks.L1.rms_norm import RMSNorm

ROPE = {"head_size": 64, "rotary_dim": 64, "max_position_embeddings": 512, "base": 1e4, "is_neox_style": True}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def shipped(task: str, device: str = "cpu", dtype: torch.dtype = torch.float32, **facts: Any) -> nn.Module:
    built = load_file(shipped_folder() / "L1" / f"{task}.py", get_task(task)).cls(**facts)
    return built.to(device, dtype).eval()


@pytest.fixture
def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton makes its IR for a GPU that need not be there, and shipped kernels take tensors of the CPU: enough to
    trace, not to run."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", 90, 32)
    monkeypatch.setattr(triton.runtime.driver, "_active", SimpleNamespace(get_current_target=lambda: target))
    for task in ("rms_norm", "rotary_emb", "silu_and_mul", "gemma_rms_norm", "gelu_and_mul", "layer_norm"):
        module = load_file(shipped_folder() / "L1" / f"{task}.py", get_task(task)).cls.__module__
        monkeypatch.setattr(sys.modules[module], "INTERPRETED", True)
    yield
    torch._dynamo.reset()


CALLS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "norm": ("rms_norm", {"hidden_size": 128}, lambda: (torch.randn(9, 128),)),
    "norm of a sum": ("rms_norm", {"hidden_size": 128}, lambda: (torch.randn(9, 128), torch.randn(9, 128))),
    "norm of heads": ("rms_norm", {"hidden_size": 64}, lambda: (torch.randn(9, 4, 64),)),
    "Gemma's": ("gemma_rms_norm", {"hidden_size": 128}, lambda: (torch.randn(9, 128), torch.randn(9, 128))),
    "RoPE": ("rotary_emb", ROPE, lambda: (torch.arange(9), torch.randn(9, 256), torch.randn(9, 64))),
    "SwiGLU": ("silu_and_mul", {}, lambda: (torch.randn(9, 256),)),
    "GeGLU": ("gelu_and_mul", {}, lambda: (torch.randn(9, 256),)),
}


@pytest.mark.usefixtures("as_if_on_a_gpu")
@pytest.mark.parametrize("name", CALLS)
def test_a_shipped_kernel_is_one_node_that_writes_to_new_tensors_whatever_the_number_of_rows(name: str) -> None:
    task, facts, example = CALLS[name]
    module = shipped(task, **facts)
    with torch.no_grad():
        graph, guards = _traced(module.forward, example(), slots_of(module))
    assert guards == []
    nodes = [n for n in graph.graph.nodes if KERNEL in str(n.target)]
    assert len(nodes) == 1
    written = nodes[0].kwargs["tensors_to_clone"]
    assert written
    assert all(str(nodes[0].kwargs["kwargs"][w].target).startswith(("aten.empty", "aten.new_empty")) for w in written)


class Branching(load_file(shipped_folder() / "L1" / "rms_norm.py", get_task("rms_norm")).cls):  # type: ignore[misc] # a class known at run time
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        return super().forward(x * 1.0 if len(x) > 16 else x, residual)


def test_plain_torch_stays_behind_its_operator() -> None:
    module = RMSNorm(hidden_size=64)
    why = hidden(module.forward, (torch.randn(5, 64),), slots=slots_of(module))
    assert why == "its trace launches no Triton kernel"


@pytest.mark.usefixtures("as_if_on_a_gpu")
def test_code_that_branches_on_the_number_of_rows_stays_behind_its_operator() -> None:
    module = Branching(hidden_size=64)
    why = hidden(module.forward, (torch.randn(5, 64),), slots=slots_of(module))
    assert why is not None
    assert why.startswith("its code asks for the number of rows: ")


def lowered(task_name: str, module: nn.Module, facts: dict[str, Any], example: tuple[Any, ...] | None) -> Lowered:
    task = get_task(task_name)
    return lower(
        module,
        task=task,
        facts=facts,
        digest=load_file(shipped_folder() / "L1" / f"{task_name}.py", task).digest,
        reference=reference_for(task, facts, device=next((p.device for p in module.parameters()), "cpu")),
        lowering="transparent",
        example=example,
    )


@pytest.mark.parametrize("example", [None, (torch.randn(5, 64),)], ids=["no example", "no kernel"])
def test_what_may_not_show_its_kernels_is_an_opaque_operator_with_the_reason(example: Any) -> None:
    outcome = lowered("rms_norm", shipped("rms_norm", hidden_size=64), {"hidden_size": 64}, example)
    try:
        assert (outcome.kind, bool(outcome.reason)) == ("opaque", True)
        assert outcome.op is not None
        assert not outcome.op.transparent
    finally:
        outcome.close()


class Seen(Exception):
    """Ends a compilation."""


@pytest.mark.usefixtures("as_if_on_a_gpu")
def test_dynamo_sees_the_operator_and_the_compiler_behind_it_the_kernel() -> None:
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.exc import BackendCompilerFailed

    from fastkernels.runtime.opaque import make_opaque

    task, facts = get_task("rms_norm"), {"hidden_size": 64}
    ops = [
        make_opaque(
            shipped("rms_norm", hidden_size=64),
            task=task,
            facts=facts,
            digest="same",
            reference=reference_for(task, facts),
            transparent=transparent,
        )
        for transparent in (True, False)
    ]
    assert ops[0].name != ops[1].name  # compile caches know an operator by its name
    targets: dict[str, list[str]] = {"Dynamo": [], "AOTAutograd": []}

    def after(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets["AOTAutograd"] = [str(n.target) for n in graph.graph.nodes]
        raise Seen

    def before(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        targets["Dynamo"] = [str(n.target) for n in graph.graph.nodes]
        return aot_autograd(fw_compiler=after)(graph, inputs)

    try:
        for op in ops:
            with torch.no_grad(), pytest.raises(BackendCompilerFailed, match="Seen"):
                torch.compile(op.forward, fullgraph=True, dynamic=True, backend=before)(torch.randn(9, 64))
            name = op.name.replace("::", ".")
            assert any(name in t for t in targets["Dynamo"])
            assert any(name in t for t in targets["AOTAutograd"]) is not op.transparent
            assert any(KERNEL in t for t in targets["AOTAutograd"]) is op.transparent
            torch._dynamo.reset()
    finally:
        for op in ops:
            op.close()


@pytest.mark.usefixtures("as_if_on_a_gpu")
def test_dynamo_traces_a_launch_where_the_candidate_itself_is_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)  # else Dynamo takes a kernel for plain Python
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.extend(str(n.target) for n in graph.graph.nodes)
        return lambda *_: (torch.zeros(9, 64),)

    with torch.no_grad():
        norm = shipped("rms_norm", hidden_size=64)
        torch.compile(norm.forward, fullgraph=True, backend=backend)(torch.randn(9, 64))
    assert sum(KERNEL in t for t in targets) == 1


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_a_graph_without_guards_launches_the_kernels_and_is_right_at_every_size() -> None:
    from torch.profiler import ProfilerActivity, profile

    dtype, sizes = torch.bfloat16, (256, 64, 64)
    norm, heads = (shipped("rms_norm", "cuda", dtype, hidden_size=n) for n in (128, 64))
    facts = {**ROPE, "dtype": dtype}
    rope = load_file(shipped_folder() / "L1" / "rotary_emb.py", get_task("rotary_emb")).cls(**facts).to("cuda").eval()

    def draw(rows: int) -> tuple[torch.Tensor, ...]:
        x = torch.randn(rows, 128, device="cuda", dtype=dtype)
        qkv = torch.randn(rows, sum(sizes), device="cuda", dtype=dtype)
        return x, torch.randn_like(x), qkv, torch.arange(rows, device="cuda")

    x, residual, qkv, positions = draw(9)
    query, key, _ = qkv.split(sizes, dim=-1)
    parts = (
        lowered("rms_norm", norm, {"hidden_size": 128}, (x, residual)),
        lowered("rms_norm", heads, {"hidden_size": 64}, (query.view(9, -1, 64),)),
        lowered("rotary_emb", rope, facts, (positions, query, key)),
    )
    assert [(p.kind, p.reason) for p in parts] == [("transparent", "its trace launches Triton kernels")] * 3

    def step(first: Any, second: Any, third: Any) -> Any:
        def run(x: torch.Tensor, residual: torch.Tensor, qkv: torch.Tensor, positions: torch.Tensor) -> Any:
            x, residual = first(x, residual)
            query, key, value = qkv.split(sizes, dim=-1)
            query = second(query.view(-1, 4, 64)).view(query.shape)
            key = second(key.view(-1, 1, 64)).view(key.shape)
            return x, residual, *third(positions, query, key), value

        return run

    compiled = torch.compile(
        step(*(p.forward for p in parts)),
        fullgraph=True,
        dynamic=True,
        options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
    )
    plain = step(norm.forward, heads.forward, rope.forward)
    try:
        with torch.inference_mode():
            for rows in (300, 1, 2, 77):
                given = draw(rows)
                for got, want in zip(compiled(*given), plain(*given), strict=True):
                    torch.testing.assert_close(got, want)
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
                compiled(*given)
                torch.cuda.synchronize()
        names = [event.name for event in seen.events()]
        assert sum("_rms_norm_kernel" in n for n in names if "::" not in n) >= 3
        assert any("_rotary_emb_kernel" in n for n in names)
        assert not any(n.startswith("fastkernels::") for n in names)
    finally:
        for part in parts:
            part.close()
        torch._dynamo.reset()
