"""Candidates that no compiler can trace, in a live model: one graph, the same logits, and the report says how."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

import fastkernels
from fastkernels.errors import LoweringError
from fastkernels.runtime.backend import recording
from fastkernels.tasks import get_task
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.L2.attention_block import LlamaAttention
from fastkernels.tasks.L2.fused_add_rms_norm import FusedAddRMSNorm
from tests.conftest import tiny_llama


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


class PrintingNorm(RMSNorm):
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        print("norm")  # noqa: T201 # what keeps it from being traced
        return super().forward(x, residual)


class PlainNorm(RMSNorm):
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        return super().forward(x, residual)


class LookingGate(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.abs().max().item() < 1e9 else x


def operators(model: nn.Module, sizes: tuple[int, ...], backend: str = "aot_eager") -> list[str]:
    """Compiles ``model`` whole, compares its logits with eager's, and returns our operators in the last graph."""
    from torch._dynamo.backends.registry import lookup_backend

    graphs: list[torch.fx.GraphModule] = []

    def keeping(graph: torch.fx.GraphModule, inputs: list) -> Any:
        graphs.append(graph)
        return lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(model, fullgraph=True, backend=keeping)
    with torch.no_grad():
        for batch in sizes:
            ids = torch.randint(101, (batch, 12), generator=torch.Generator().manual_seed(batch))
            want = model(ids, use_cache=False).logits
            torch.testing.assert_close(compiled(ids, use_cache=False).logits, want, rtol=1e-4, atol=1e-4)
    assert len(graphs) <= 2
    return [str(n.target) for n in graphs[-1].graph.nodes if "fastkernels" in str(n.target)]


def test_auto_lowers_each_candidate_as_it_must_be_and_reports_it(llama: nn.Module) -> None:
    with fastkernels.patch(llama, {"rms_norm": PrintingNorm, "silu_and_mul": LookingGate}) as p:
        sites = {s.path: s for s in p.report.sites if s.state == "applied"}
        norm, mlp = sites["model.norm"], sites["model.layers.0.mlp"]
        assert norm.lowering == "opaque"
        assert "print" in norm.lowering_reason
        assert "test_lowering_in_models.py" in norm.lowering_reason
        assert mlp.lowering == "inline"
        assert mlp.lowering_inside["act_fn"].startswith("opaque: ")
        ours = operators(llama, (2, 5, 3, 9))
        assert sum("rms_norm" in op for op in ours) == 5
        assert sum("silu_and_mul" in op for op in ours) == 2
    assert not [name for name in dir(torch.ops.fastkernels) if name.startswith(("rms_norm", "silu_and_mul"))]


def test_eager_calls_run_opaque_candidates_without_their_operators(llama: nn.Module, ids: torch.Tensor) -> None:
    candidates = {"rms_norm": PlainNorm, "silu_and_mul": LookingGate}
    with fastkernels.patch(llama, candidates, lowering="opaque") as p, torch.no_grad():
        with p.observe() as window:
            llama(ids)
        norm, gate = window.result.tasks["rms_norm"], window.result.tasks["silu_and_mul"]
        assert (norm.calls, gate.calls) == (5, 2)
        assert not norm.ops
        assert not gate.ops
        window.result.require()


def test_opaque_and_inline_are_taken_at_their_word(llama: nn.Module) -> None:
    with fastkernels.patch(llama, {"rms_norm": PlainNorm}, lowering="opaque") as p:
        assert {s.lowering for s in p.report.applied} == {"opaque"}
        assert len(operators(llama, (2, 5))) == 5
    with fastkernels.patch(llama, {"rms_norm": PlainNorm}) as p:
        assert {s.lowering for s in p.report.applied} == {"inline"}
        assert not operators(llama, (2, 5))
    with (
        pytest.raises(LoweringError, match=r"PrintingNorm.*cannot be traced.*lowering='auto'"),
        fastkernels.patch(llama, {"rms_norm": PrintingNorm}, lowering="inline"),
    ):
        pass
    assert not any("forward" in m.__dict__ for m in llama.modules())


def test_weights_changed_after_compiling_reach_the_operators(llama: nn.Module) -> None:
    with fastkernels.patch(llama, {"rms_norm": PrintingNorm}), torch.no_grad():
        ids = torch.arange(12)[None]
        compiled = torch.compile(llama, fullgraph=True, backend="aot_eager")
        before = compiled(ids, use_cache=False).logits
        llama.model.norm.weight.mul_(2)
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, 2 * before)


def test_inductor_compiles_a_model_of_operators(llama: nn.Module) -> None:
    with fastkernels.patch(llama, {"rms_norm": PrintingNorm, "silu_and_mul": LookingGate}):
        assert len(operators(llama, (2, 5), "inductor")) == 7


def test_decoding_through_attention_that_no_operator_can_be_of_keeps_the_other_operators(llama: nn.Module) -> None:
    def decoded(forward: Any) -> torch.Tensor:
        cache = StaticCache(config=llama.config, max_cache_len=32)
        ids = torch.arange(12)[None]
        llama(ids[:, :10], past_key_values=cache)
        return torch.cat([forward(ids[:, i : i + 1], past_key_values=cache).logits for i in (10, 11)])

    with torch.no_grad():
        want = decoded(llama)
        with fastkernels.patch(llama, "shipped", lowering="opaque") as p, recording() as graphs:
            compiled = torch.compile(llama, backend="fastkernels", fullgraph=True)
            torch.testing.assert_close(decoded(compiled), want, rtol=1e-4, atol=1e-4)
            inside = next(s for s in p.report.applied if s.task == "causal_lm").lowering_inside
    assert "a call that gives update is traced as the task's reference" in inside["model.layers.0.self_attn"]
    layers = len(llama.model.layers)
    counted = {name.removeprefix("fastkernels::")[:-11]: n for name, n in graphs[0].present.items()}
    assert counted == {"rms_norm": layers + 1, "fused_add_rms_norm": layers, "gated_mlp": layers}


def test_a_copy_of_a_patched_model_has_operators_over_its_own_weights(llama: nn.Module) -> None:

    with fastkernels.patch(llama, {"rms_norm": PrintingNorm}):
        twin = copy.deepcopy(llama)
        with torch.no_grad():
            twin.model.norm.weight.mul_(3)
            ids = torch.arange(12)[None]
            want = twin(ids, use_cache=False).logits
            got = torch.compile(twin, fullgraph=True, backend="aot_eager")(ids, use_cache=False).logits
        torch.testing.assert_close(got, want)


def test_a_model_moved_to_another_dtype_while_patched_still_compiles_whole(llama: nn.Module) -> None:
    with fastkernels.patch(llama, {"rms_norm": PrintingNorm}), torch.no_grad():
        llama.to(torch.bfloat16)
        ids = torch.arange(12)[None]
        got = torch.compile(llama, fullgraph=True, backend="aot_eager")(ids, use_cache=False).logits
        torch.testing.assert_close(got, llama(ids, use_cache=False).logits, rtol=2e-2, atol=2e-2)


class PrintingAttention(LlamaAttention):
    def forward(self, *call: Any) -> torch.Tensor:
        print("attend")  # noqa: T201 # what keeps it from being traced
        return super().forward(*call)


def test_calls_that_an_operator_cannot_take_are_the_originals_in_a_graph(llama: nn.Module) -> None:
    with fastkernels.patch(llama, {"attention_block": PrintingAttention}) as p, torch.no_grad():
        assert {s.lowering for s in p.report.applied} == {"opaque"}
        assert len(operators(llama, (2, 5))) == 2
        torch._dynamo.reset()
        ids = torch.arange(12)[None]
        compiled = torch.compile(llama, fullgraph=True, backend="aot_eager")
        with_cache = compiled(ids, past_key_values=DynamicCache(config=llama.config), use_cache=True).logits
        torch.testing.assert_close(with_cache, llama(ids).logits, rtol=1e-4, atol=1e-4)


class PlainFused(FusedAddRMSNorm):
    pass


class PrintingFused(FusedAddRMSNorm):
    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> Any:
        print("fused")  # noqa: T201 # what keeps it from being traced
        return super().forward(x, residual)


class PlainModel(get_task("causal_lm").interface):  # type: ignore[misc] # a class found at run time
    pass


class PrintingModel(PlainModel):
    def forward(self, *call: Any) -> torch.Tensor:
        print("model")  # noqa: T201 # what keeps it from being traced
        return super().forward(*call)


DEEP = 4  # layers; a whole model is tried on a stand-in of two


@pytest.mark.parametrize(
    ("fused", "lowering", "kind", "count"),
    [
        (PlainFused, "auto", "inline", 0),
        (PlainFused, "inline", "inline", 0),
        (PlainFused, "opaque", "opaque", DEEP),
        (PrintingFused, "auto", "opaque", DEEP),
    ],
)
def test_layers_that_the_trial_left_out_are_lowered_as_the_ones_it_had(
    fused: type[nn.Module], lowering: Any, kind: str, count: int
) -> None:
    model = tiny_llama(num_hidden_layers=DEEP)
    with fastkernels.patch(model, {"fused_add_rms_norm": fused}, lowering=lowering) as p:
        (site,) = [s for s in p.report.applied if s.path == ""]
        inside = {path: said for path, said in site.lowering_inside.items() if path.endswith("layernorm")}
        assert len(inside) == DEEP
        assert all(said.startswith(f"{kind}: ") for said in inside.values())
        assert len(set(inside.values())) == 1
        assert sum("fused_add_rms_norm" in op for op in operators(model, (2, 5))) == count


@pytest.mark.parametrize("lowering", ["inline", "auto"])
def test_a_whole_model_with_a_candidate_inside_is_one_graph_however_deep(lowering: Any) -> None:
    model = tiny_llama(num_hidden_layers=DEEP)
    candidates = {"causal_lm": PlainModel, "rms_norm": PlainNorm}
    with fastkernels.patch(model, candidates, lowering=lowering, verify=False) as p:
        assert next(s for s in p.report.applied if s.path == "").lowering == "inline"
        assert not operators(model, (2, 5))


def test_a_shorter_window_in_the_trial_does_not_keep_the_other_layers_from_its_outcome() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, vocab_size=101
    )
    config.num_hidden_layers, config.sliding_window = DEEP, 9
    model = MistralForCausalLM(config).eval()

    class Attention(LlamaAttention):
        pass

    candidates = {"causal_lm": PlainModel, "attention_block": Attention}
    with fastkernels.patch(model, candidates, verify=False) as p:
        site = next(s for s in p.report.applied if s.path == "")
        inside = {path: said for path, said in site.lowering_inside.items() if path.endswith("self_attn")}
        assert len(inside) == DEEP
        assert set(inside.values()) == {"inline: Dynamo traces it in one graph"}


def test_a_whole_model_as_an_operator_is_refused_with_its_path_candidate_and_argument(llama: nn.Module) -> None:
    with (
        pytest.raises(LoweringError, match=r"^\(model\) \(LlamaForCausalLM\): .*PlainModel.*argument cos.*='auto'"),
        fastkernels.patch(llama, {"causal_lm": PlainModel}, lowering="opaque"),
    ):
        pass
    assert not any("forward" in m.__dict__ for m in llama.modules())


def test_a_whole_model_that_cannot_be_traced_is_the_original_in_a_graph_and_says_why(llama: nn.Module) -> None:
    with fastkernels.patch(llama, {"causal_lm": PrintingModel}) as p:
        site = next(s for s in p.report.applied if s.path == "")
        assert site.lowering == "original"
        assert "PrintingModel" in site.lowering_reason
        assert "print" in site.lowering_reason
        assert "argument cos" in site.lowering_reason
        assert not operators(llama, (2, 5))
