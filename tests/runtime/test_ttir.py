"""Equal calls of one Triton kernel share its IR; calls that Triton would compile apart do not."""

import inspect

import pytest
import torch

pytest.importorskip("triton")
from torch._higher_order_ops import triton_kernel_wrap

from fastkernels.runtime.ttir import once_for_equals, ttir_made_once
from tests.runtime.scale_kernel import scale


def call(dtype=torch.float32, factor=2.0, count=16, rows=16):
    return {"x": torch.ones(rows, dtype=dtype), "out": torch.ones(rows, dtype=dtype), "factor": factor, "COUNT": count}


@pytest.mark.parametrize(
    ("other", "descriptors", "generated"),
    [
        (call(rows=32), {}, 1),
        (call(dtype=torch.float16), {}, 2),
        (call(factor=3.0), {}, 2),
        (call(factor=2), {}, 2),
        (call(count=32), {}, 2),
        (call(factor=[2.0]), {}, 2),
        (call(), {"x": ("stable", ([16],))}, 2),
    ],
    ids=["shape", "dtype", "value", "type", "constant", "no hash", "descriptor"],
)
def test_ir_is_made_again_for_what_it_depends_on(other, descriptors, generated):
    made = []
    kept = once_for_equals(lambda kernel, kwargs, metadata: made.append(kwargs) or len(made))
    assert kept(scale, call(), {}) == 1
    assert kept(scale, other, descriptors) == generated
    assert len(made) == generated


def test_launch_options_are_taken_out_as_torch_takes_them():
    kept = once_for_equals(lambda kernel, kwargs, metadata: kwargs.pop("num_warps"))
    for _ in range(2):
        kwargs = call() | {"num_warps": 8}
        assert kept(scale, kwargs, {}) == 8
        assert kwargs.keys() == call().keys()


def test_the_autotuner_that_dynamo_puts_around_a_call_is_not_another_kernel():
    import triton

    made = []
    kept = once_for_equals(lambda kernel, kwargs, metadata: made.append(kernel) or len(made))
    constants = [{}, {}, {"COUNT": 32}]
    tuners = [triton.autotune([triton.Config(c, num_warps=8)], key=[])(scale) for c in constants]
    assert [kept(t, call(), {}) for t in tuners] == [1, 1, 2]


def test_torch_has_the_function_that_is_kept():
    assert list(inspect.signature(triton_kernel_wrap.generate_ttir).parameters) == [
        "kernel", "kwargs", "tma_descriptor_metadata",
    ]  # fmt: skip
    before = triton_kernel_wrap.generate_ttir
    with ttir_made_once():
        assert triton_kernel_wrap.generate_ttir is not before
    assert triton_kernel_wrap.generate_ttir is before


@pytest.mark.gpu
def test_a_kernel_called_in_each_layer_is_analysed_once(monkeypatch):
    made = []
    generate = triton_kernel_wrap.generate_ttir
    monkeypatch.setattr(triton_kernel_wrap, "generate_ttir", lambda *a: made.append(a[0]) or generate(*a))

    def layers(x):
        for _ in range(4):
            out = torch.empty_like(x)
            scale[(1,)](x, out, 2.0, COUNT=16, num_warps=8)
            x = out
        return x

    x = torch.ones(16, device="cuda")
    torch.testing.assert_close(torch.compile(layers, backend="fastkernels", fullgraph=True)(x), x * 16)
    assert len(made) == 1
