"""vLLM's own ways to miss a replacement: operators bound in ``__init__``, switched off under Inductor, replaced by the
name of a class, patched when the code is compiled already. What this library puts in stands on instances."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import fastkernels
from fastkernels.errors import LoweringError
from fastkernels.patches.vllm.context import call_context
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.L2.served_attention import ServedAttention
from fastkernels.tasks.L3.served_layer import ServedDecoderLayer
from tests.patches.vllm.engines import tiny_engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
pytest.importorskip("vllm")
WIDTH = 64


class Norm(RMSNorm):
    pass


class Gate(SiluAndMul):
    pass


class Product(Linear):
    pass


class Attention(ServedAttention):
    def forward(self, positions, hidden_states, attend):
        return torch.neg(torch.neg(super().forward(positions, hidden_states, attend)))


class Layer(ServedDecoderLayer):
    pass


class Untraceable(ServedAttention):
    def forward(self, positions, hidden_states, attend):
        if hidden_states.abs().max().item() > 1e6:
            raise OverflowError
        return super().forward(positions, hidden_states, attend)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with tiny_engine("qwen3", tmp_path_factory.mktemp("qwen3")) as engine:
        yield engine


@pytest.fixture
def compiling(monkeypatch):
    """Dynamo on, whatever the engine was started with; ``compiled(module, *call)`` returns result and operators."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    torch._dynamo.reset()

    def compiled(module: nn.Module, *call: Any) -> tuple[Any, list[str]]:
        graphs: list[torch.fx.GraphModule] = []

        def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
            graphs.append(graph)
            return graph.forward

        with torch.inference_mode(), torch._dynamo.config.patch(disable=False):
            got = torch.compile(lambda *a: module(*a), fullgraph=True, backend=backend)(*call)
        assert len(graphs) == 1
        return got, [str(n.target) for n in graphs[0].graph.nodes if n.op == "call_function"]

    yield compiled
    torch._dynamo.reset()


def held(operators: list[str]) -> list[str]:
    """The tasks of our operators."""
    ours = (re.match(r"fastkernels\.(\w+?)_[0-9a-f]{10}", operator) for operator in operators)
    return sorted(found.group(1) for found in ours if found is not None)


class Two(nn.Module):
    """A norm and a gate of vLLM, built as a compiling engine builds them: with every custom operator switched off."""

    def __init__(self, *, custom_ops):
        super().__init__()
        from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
        from vllm.model_executor.layers.activation import SiluAndMul as Vllms
        from vllm.model_executor.layers.layernorm import RMSNorm as VllmsNorm

        self.config = VllmConfig(compilation_config=CompilationConfig(custom_ops=[custom_ops]))
        with set_current_vllm_config(self.config), torch.inference_mode():
            self.norm, self.gate = VllmsNorm(2 * WIDTH), Vllms()
            self.norm.weight.data = torch.randn(2 * WIDTH)

    def forward(self, x):
        return self.gate(self.norm(x))


@pytest.mark.parametrize("custom_ops", ["none", "all"])
@torch.no_grad()
def test_a_candidate_is_called_whether_the_engine_enables_its_custom_operators_or_not(engine, compiling, custom_ops):
    model = Two(custom_ops=custom_ops)
    x = torch.randn(3, 2 * WIDTH)
    want = model(x)
    calls = []
    # The trap: the method was bound when the module was made, and no later attribute or class reaches it.
    for name in ("forward_cuda", "forward_cpu"):
        setattr(model.gate, name, lambda x: calls.append(1))
    torch.testing.assert_close(model(x), want)
    assert not calls
    with (
        call_context(engine.config),
        fastkernels.patch(model, {"rms_norm": Norm, "silu_and_mul": Gate}, lowering="opaque") as handle,
    ):
        torch.testing.assert_close(model(x), want)
        assert [s.calls for s in handle.report.applied] == [1, 1]
        got, operators = compiling(model, x)
    torch.testing.assert_close(got, want)
    assert held(operators) == ["rms_norm", "silu_and_mul"]
    assert calls == []


@pytest.fixture
def layer(engine, monkeypatch):
    """A decoder layer whose attention backend answers without a step: outside one it leaves its output as it was."""

    def forward(layer, query, key, value, kv_cache, attn_metadata, output, **_):
        return output.copy_(query + key.repeat_interleave(2, dim=1) - value.repeat_interleave(2, dim=1))

    found = engine.model.model.layers[1]
    monkeypatch.setattr(found.self_attn.attn.impl, "forward", forward)
    return found


def layer_call(layer: nn.Module) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(9, layer.hidden_size, generator=g) for _ in range(2))
    return torch.arange(9) * 7, x, residual


@torch.inference_mode()
def run(layer, call):
    return layer(call[0], *(t.clone() for t in call[1:]))


@pytest.mark.parametrize(
    ("candidates", "wanted"),
    [
        ({"rms_norm": Norm}, ["rms_norm"] * 4),
        ({"served_attention": Attention}, []),
        ({"served_attention": Attention, "rms_norm": Norm}, ["rms_norm"] * 4),
        ({"served_layer": Layer}, []),
        ({"served_layer": Layer, "rms_norm": Norm, "silu_and_mul": Gate}, ["rms_norm"] * 4 + ["silu_and_mul"]),
    ],
    ids=lambda value: "-".join(value),
)
def test_a_compiled_layer_holds_the_candidates_and_the_engines_attention(engine, layer, compiling, candidates, wanted):
    call = layer_call(layer)
    with call_context(engine.config):
        want = run(layer, call)
        _, before = compiling(layer, *(t.clone() for t in call))
        with fastkernels.patch(engine.model, candidates, lowering="opaque") as handle:
            got, operators = compiling(layer, *(t.clone() for t in call))
            kinds = {s.task: s.lowering for s in handle.report.applied if s.inside is None}
        after = run(layer, call)
    for g, w, a in zip(got, want, after, strict=True):
        torch.testing.assert_close(g, w)
        assert torch.equal(a, w)
    assert held(operators) == sorted(wanted)
    paged = [o for o in before if "unified_attention" in o]
    assert paged and [o for o in operators if "unified_attention" in o] == paged
    top = max(candidates, key=lambda task: fastkernels.tasks.get_task(task).level)
    assert kinds[top] == ("opaque" if top == "rms_norm" else "inline")
    if top == "served_attention":  # its code itself is in the graph
        assert sum("neg" in o for o in operators) == 2 + sum("neg" in o for o in before)


def test_a_block_that_cannot_be_traced_is_refused_where_operators_are_asked_for(engine, compiling):
    with (
        call_context(engine.config),
        pytest.raises(LoweringError, match=r"self_attn .*Untraceable.*No operator takes its argument attend"),
    ):
        fastkernels.patch(engine.model, {"served_attention": Untraceable}, lowering="opaque")
    assert not any("forward" in m.__dict__ for m in engine.model.modules())


def test_a_norm_that_somebody_replaced_by_class_name_is_judged_by_what_it_computes(engine):
    from vllm.model_executor import custom_op
    from vllm.model_executor.layers.layernorm import RMSNorm as VllmsNorm

    model = Two(custom_ops="all")
    late = type(
        "Doubles", (VllmsNorm,), {"forward_cpu": lambda self, x, residual=None: self.forward_native(x, residual) * 2}
    )
    same = type("Same", (VllmsNorm,), {"name": "same"})
    for replacement in (late, same):
        VllmsNorm.register_oot(replacement, name="RMSNorm")
        try:
            # The trap: what exists already is not replaced. Ours is put on what exists, whenever.
            assert type(model.norm) is VllmsNorm
            built = Two(custom_ops="all")
            assert type(built.norm) is replacement
        finally:
            custom_op.op_registry_oot.pop("RMSNorm")
        with call_context(engine.config):
            report = fastkernels.patch(built, {"rms_norm": Norm}, on_miss="report").report
            applied = fastkernels.patch(model, {"rms_norm": Norm})
            assert [s.path for s in applied.report.applied] == ["norm"]
            applied.unpatch()
        assert [s.path for s in report.applied] == ([] if replacement is late else ["norm"])
        assert [u.reason.startswith("probe mismatch") for u in report.unrecognised] == [True] * (replacement is late)


@torch.inference_mode()
def test_a_kernel_that_the_engines_operator_prefers_does_not_run_in_the_candidates_stead(engine):
    """The trap: an operator runs what its list of priorities says; what is registered and not in it never runs."""
    from vllm import ir

    operator = ir.ops.rms_norm
    calls = []

    @operator.register_impl("fastkernels_test")
    def preferred(
        x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> torch.Tensor:
        calls.append(1)
        return operator.impls["native"].impl_fn(x, weight, epsilon, variance_size)

    model = Two(custom_ops="all")
    x = torch.randn(3, 2 * WIDTH)
    try:
        want = model.norm(x)
        assert not calls
        with operator.set_priority(["fastkernels_test"]):
            model.norm(x)
            assert calls.pop() and not calls
            with call_context(engine.config), fastkernels.patch(model, {"rms_norm": Norm}) as handle:
                calls.clear()  # its trials ask the engine too
                torch.testing.assert_close(model.norm(x), want)
                assert [s.calls for s in handle.report.applied] == [1]
        assert not calls
    finally:
        operator.impls.pop("fastkernels_test")


class Linears(nn.Module):
    """A linear layer, beside a norm, as the engine builds them."""

    def __init__(self, config):
        super().__init__()
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.layers.layernorm import RMSNorm as VllmsNorm
        from vllm.model_executor.layers.linear import ReplicatedLinear

        with set_current_vllm_config(config), torch.inference_mode():
            self.norm = VllmsNorm(WIDTH)
            self.proj = ReplicatedLinear(WIDTH, WIDTH, bias=False)
            self.proj.weight.data = torch.randn(WIDTH, WIDTH)
            self.proj.quant_method.process_weights_after_loading(self.proj)


@torch.inference_mode()
def test_a_layer_that_somebody_replaced_by_class_name_is_gated_unless_its_forward_is_the_engines(engine):
    from vllm.model_executor import custom_op
    from vllm.model_executor.layers.linear import ReplicatedLinear

    def doubled(self, x):
        return ReplicatedLinear.forward(self, 2 * x)

    earlier = Linears(engine.config)
    states = {}
    for name, own in {"Doubles": {"forward": doubled}, "Same": {}}.items():
        ReplicatedLinear.register_oot(type(name, (ReplicatedLinear,), own), name="ReplicatedLinear")
        try:
            # The trap: only what is built from now on is replaced.
            assert type(earlier.proj) is ReplicatedLinear
            later = Linears(engine.config)
            assert type(later.proj).__name__ == name
        finally:
            custom_op.op_registry_oot.pop("ReplicatedLinear")
        with call_context(engine.config):
            for which, model in {"earlier": earlier, name: later}.items():
                x = torch.randn(3, WIDTH)
                want, _ = model.proj(x)
                with fastkernels.patch(model, {"linear": Product}, on_miss="report") as handle:
                    torch.testing.assert_close(model.proj(x)[0], want)
                    (site,) = (s for s in handle.report.sites if s.path == "proj")
                    states[which] = (site.state, site.calls, "a forward of its own" in site.reason)
    assert states == {"earlier": ("applied", 1, False), "Same": ("applied", 1, False), "Doubles": ("gated", 0, True)}
