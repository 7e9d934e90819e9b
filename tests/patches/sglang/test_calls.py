"""How calls in SGLang's convention are read: what the task can say goes to the candidate, the rest says why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastkernels.patches.sglang.experts import enter as experts_enter
from fastkernels.patches.sglang.gated_mlp import enter_for as mlp_enter_for
from fastkernels.patches.sglang.linear import enter_for as linear_enter_for
from fastkernels.patches.sglang.norms import enter as norm_enter
from fastkernels.patches.sglang.rope import enter as rope_enter

X, R = torch.randn(3, 8), torch.randn(3, 8)


class UnquantizedLinearMethod:
    """By name what SGLang's plain linears hold."""


class Fp8LinearMethod:
    """By name what a linear with a static scale holds: the norm in front of it then returns fp8."""


def linear_with(method: object) -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.quant_method = method
    return layer


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X, R), {}),
        ((X,), {"residual": R}),
        ((), {"x": X, "residual": R}),
        ((X, R, None), {}),
        ((X, R, None, None), {}),
    ],
)
def test_a_norm_reads_its_residual_however_it_is_passed(args, kwargs):
    x, residual = norm_enter(args, kwargs)
    assert x is X and residual is R


@pytest.mark.parametrize("args", [(X,), (X, R)])
def test_a_norm_before_a_plain_linear_is_a_norm(args):
    read = norm_enter(args, {"quant_linear": linear_with(UnquantizedLinearMethod())})
    assert not isinstance(read, str) and read[0] is X


def test_a_norm_before_a_quantised_linear_stays_with_the_engine():
    assert "quant_linear" in norm_enter((X, R), {"quant_linear": linear_with(Fp8LinearMethod())})


@pytest.mark.parametrize(("args", "kwargs"), [((X, R, R), {}), ((X, R), {"post_residual_addition": R})])
def test_a_second_addition_stays_with_the_engine(args, kwargs):
    assert "post_residual_addition" in norm_enter(args, kwargs)


@pytest.mark.parametrize("name", ["backend", "something_new"])
def test_a_keyword_that_nobody_knows_stays_with_the_engine(name):
    assert name in norm_enter((X,), {name: "triton"})


def test_a_rope_that_also_writes_the_cache_stays_with_the_engine():
    positions = torch.arange(3)
    assert rope_enter((positions, X, R), {}) == (positions, X, R)
    assert rope_enter((positions, X, R), {"fused_set_kv_buffer_arg": None})[1] is X
    assert "writes the KV cache" in rope_enter((positions, X, R), {"fused_set_kv_buffer_arg": object()})
    assert "writes the KV cache" in rope_enter((positions, X, R, None, object()), {})
    assert "offsets" in rope_enter((positions, X, R, torch.ones(3)), {})


def test_positions_of_images_stay_with_the_engine():
    assert "2, 2 and 2 dimensions" in rope_enter((torch.zeros(3, 5), X, R), {})


def test_a_linear_that_writes_into_given_memory_stays_with_the_engine():
    enter = linear_enter_for(alone=True)
    assert tuple(enter((X,), {"skip_all_reduce": True, "forward_batch": object()})) == (X,)
    assert "output_tensor" in enter((X,), {"output_tensor": R})
    assert "output_tensor" in enter((X, False, None, R), {})
    assert "addend" in enter((X,), {"addend": R})


def test_an_mlp_alone_needs_nothing_said_about_ranks():
    enter = mlp_enter_for(alone=True)
    assert tuple(enter((X, object()), {"use_reduce_scatter": True})) == (X,)
    assert "allocator" in enter((X,), {"allocator": object()})


def test_experts_take_the_standard_choice_only():
    class StandardTopKOutput:
        topk_weights, topk_ids = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int32)

    class BypassedTopKOutput:
        pass

    x, weights, ids = experts_enter((X, StandardTopKOutput()), {})
    assert x is X and weights is StandardTopKOutput.topk_weights and ids.dtype == torch.int64
    assert "BypassedTopKOutput" in experts_enter((X,), {"topk_output": BypassedTopKOutput()})
    assert "pre_quant_input" in experts_enter((X, StandardTopKOutput()), {"pre_quant_input": (X, X)})
    assert experts_enter((X[:0], StandardTopKOutput()), {}) == "no tokens"
