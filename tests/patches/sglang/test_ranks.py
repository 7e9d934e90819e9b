"""Tensor parallelism: each rank's part of a product is the candidate's, the reductions around it the engine's."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from tests.patches.sglang.conftest import STEPS, tiny

LINEARS = {"linear": 4, "rotary_emb": 1}
APPLIED = {
    "llama": LINEARS | {"gated_mlp": 2, "rms_norm": 5},
    "qwen3_moe": LINEARS | {"linear": 6, "topk_softmax": 2, "fused_experts": 2, "rms_norm": 9},
}

TASKS = {task for applied in APPLIED.values() for task in applied} | {"embedding"}


@pytest.mark.engine
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", APPLIED)
def test_both_ranks_apply_the_references_and_generate_the_same_tokens(name, tmp_path):
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("sglang is not in this environment")
    from tests.patches.sglang.ranks import on_two_ranks

    first, second = on_two_ranks(tiny(tmp_path, name), tmp_path, TASKS)
    assert first["pid"] != second["pid"]
    for told in (first, second):
        unpatched, patched, again = told["tokens"]
        assert unpatched == patched == again == first["tokens"][0]
        assert told["distance"] < 1e-4
        assert told["applied"] == APPLIED[name]
        assert {calls for _, calls in told["calls"]} == {STEPS, 2 * STEPS} and not told["bypassed"]
        assert told["gated"]["model.embed_tokens"] == "its vocabulary is split over ranks"


class Reduced(nn.Module):
    """The shape of a row-parallel forward: a product, doubled where ranks are summed, and the bias for the caller."""

    def __init__(self):
        super().__init__()
        self.quant_method, self.reduce_results = None, True
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self, x, skip_all_reduce=False):
        product = self.quant_method.apply(self, x, bias=None)
        return product * (2 if self.reduce_results and not skip_all_reduce else 1), None


def test_the_engines_own_code_runs_around_a_product_and_the_module_does_not_notice():
    from fastkernels.patches.sglang.around import Call, finish_linear, unreduced

    layer, x, product = Reduced(), torch.ones(4, 3), torch.full((4, 2), 7.0)
    assert torch.equal(finish_linear(layer, product, Call.of((x,), (x,), {}))[0], 2 * product)
    assert torch.equal(finish_linear(layer, product, Call.of((x,), (x,), {"skip_all_reduce": True}))[0], product)
    with unreduced(layer):
        assert torch.equal(finish_linear(layer, product, Call.of((x,), (x,), {}))[0], product)
    assert layer.quant_method is None and layer.reduce_results is True


class Shortcut:
    """What computes all of an MLP but its last product at once."""

    def can_run(self, *args):
        return True

    def __call__(self, x, gate_up):
        return gate_up.weight @ x


class Mlp(nn.Module):
    """The shape of a gated MLP since 0.5.23."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj, self.act_fn, self.down_proj = Reduced(), nn.Identity(), Reduced()
        self.dual_gemm = Shortcut()

    def forward(self, x):
        if self.dual_gemm.can_run(x, self.gate_up_proj):
            x = self.dual_gemm(x, self.gate_up_proj)
        else:
            x = self.act_fn(self.gate_up_proj(x)[0])
        return self.down_proj(x)[0]


def test_an_mlps_own_code_finishes_a_product_without_its_shortcuts():
    from fastkernels.patches.sglang.around import Call, finish_mlp

    mlp, x, product = Mlp(), torch.ones(4, 3), torch.full((4, 2), 7.0)
    assert torch.equal(finish_mlp(mlp, "down_proj", product, Call.of((x,), (x,), {})), 2 * product)
    assert isinstance(mlp.dual_gemm, Shortcut)
