"""What a dispatcher relies on, asked at each call and by Dynamo: identity, not equality; one graph for all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import fastkernels
from fastkernels.patches.liveness import ABSENT, compile_check, numbers_of, unchanged
from fastkernels.tasks.L1.rms_norm import RMSNorm
from tests.conftest import tiny_llama

LAYERS = lambda site: site.task.level <= 3  # noqa: E731 - decoder layers whole
MODULES = lambda site: site.task.level <= 2  # noqa: E731 - the modules inside decoder layers


class EqualToAll(nn.Linear):
    """A module that a comparison by value takes for any other."""

    __hash__ = nn.Module.__hash__

    def __eq__(self, other: object) -> bool:
        return True


@pytest.fixture
def compiled() -> Iterator[Callable[..., Any]]:
    """``torch.compile`` that keeps the graphs it made in ``graphs``."""

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        compile_.graphs.append(graph)
        return graph.forward

    def compile_(module: nn.Module, **options: Any) -> Any:
        return torch.compile(module, backend=keep, **options)

    compile_.graphs = []
    torch._dynamo.reset()
    yield compile_
    torch._dynamo.reset()


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids, use_cache=False).logits


@pytest.mark.parametrize("check", ["compiled", "traced"])
def test_an_equal_value_does_not_pass_for_the_one_that_was_bound(check):
    child, weight = nn.Linear(1, 1, bias=False), nn.Parameter(torch.ones(1))
    modules, parameters, attributes = {"child": child}, {"weight": weight}, {"scale": 1}
    pins = [(modules, "child", child), (parameters, "weight", weight), (attributes, "forward", ABSENT)]
    holds = compile_check(pins, [], [weight]) if check == "compiled" else lambda: unchanged(*numbers_of(pins))
    assert holds()
    for slots, key, other in (
        (modules, "child", EqualToAll(1, 1)),
        (modules, "child", None),
        (parameters, "weight", nn.Parameter(torch.ones(1))),
        (attributes, "forward", print),
    ):
        former = slots.get(key, ABSENT)
        slots[key] = other
        assert not holds()
        slots.pop(key)
        assert former is ABSENT or not holds()
        if former is not ABSENT:
            slots[key] = former
        assert holds()


def test_a_parameter_that_moved_is_seen_and_the_source_is_shared_by_equal_structures():
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    first, second = (compile_check([({"w": w}, "w", w)], [], [w]) for w in weights)
    assert first.__code__ is second.__code__ and first() and second()
    weights[0].data = weights[0].data.clone()
    assert not first() and second()


@pytest.mark.parametrize("select", [LAYERS, MODULES], ids=["layers", "modules"])
def test_a_deep_patched_model_is_one_graph_that_later_calls_use_again(compiled, ids, select):
    model = tiny_llama(num_hidden_layers=12)
    want = logits(model, ids)
    with fastkernels.patch(model, "reference", select=select):
        whole = compiled(model, fullgraph=True)
        for _ in range(3):
            torch.testing.assert_close(logits(whole, ids), want, rtol=1e-4, atol=1e-5)
        logits(model, ids)  # an eager call in between is no reason to compile again
        logits(whole, ids)
    assert len(compiled.graphs) == 1


def test_patched_decoder_layers_compiled_one_by_one_share_a_graph_as_unpatched_ones_do(compiled, ids):
    model = tiny_llama(num_hidden_layers=12)
    want = logits(model, ids)
    with fastkernels.patch(model, "reference", select=LAYERS):
        layers = list(model.model.layers)
        for i, layer in enumerate(layers):
            model.model.layers[i] = compiled(layer, fullgraph=True)
        torch.testing.assert_close(logits(model, ids), want, rtol=1e-4, atol=1e-5)
        model.model.layers = nn.ModuleList(layers)
    assert len(compiled.graphs) == 1


def test_modules_whose_numbers_differ_all_run_their_candidate_where_one_function_compiles_them(compiled):
    """Dynamo makes symbols of numbers that differ between traces of one code object."""

    class Marked(RMSNorm):
        def forward(self, x, residual=None):
            return torch.fmax(y := super().forward(x, residual), y)

    norms = nn.ModuleList(LlamaRMSNorm(16, eps=eps) for eps in (1e-6, 1e-5, 1e-4, 1e-3)).eval()
    with fastkernels.patch(norms, {"rms_norm": Marked}), torch.no_grad():
        run = compiled(lambda norm, x: norm(x), fullgraph=True)
        for norm in norms:
            run(norm, torch.randn(2, 16))
    assert len(compiled.graphs) > 1
    assert all("fmax" in graph.code for graph in compiled.graphs)


@pytest.mark.parametrize("how", ["data", "dtype", "assign"])
def test_weights_changed_between_patch_and_compile_are_the_ones_compiled(compiled, ids, how):
    model, plain = tiny_llama(), tiny_llama()
    with fastkernels.patch(model, "reference", select=LAYERS):
        for each in (model, plain):
            if how == "data":
                weight = each.model.layers[0].self_attn.q_proj.weight
                weight.data = weight.data * 3
            elif how == "dtype":
                each.to(torch.bfloat16)
            else:
                each.load_state_dict({k: v * 0.5 for k, v in each.state_dict().items()}, assign=True)
        tolerance = 0.05 if how == "dtype" else 1e-4
        got = logits(compiled(model, fullgraph=True), ids)
        torch.testing.assert_close(got, logits(plain, ids), rtol=tolerance, atol=tolerance)


def test_a_compiled_layer_that_turns_to_training_and_back_runs_the_candidate_again(compiled, ids):
    model = tiny_llama()
    want = logits(model, ids)
    with fastkernels.patch(model, "reference", select=LAYERS) as p:
        whole = compiled(model)
        model.train()
        logits(whole, ids)
        reasons = [r for d in p.dispatchers.values() for r in d.bypassed]
        assert len(reasons) == 2 and all("training mode" in r for r in reasons)
        model.eval()
        torch.testing.assert_close(logits(whole, ids), want, rtol=1e-4, atol=1e-5)
        assert len(compiled.graphs) == 2
