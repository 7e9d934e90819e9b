"""The product of one row: right for odd sizes, biases and gates; not taken where cuBLAS or gradients are wanted."""

import os

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from fastkernels.runtime.gemv import gemv

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="not interpreted")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
SIZES = [(7, 23), (64, 4096), (12, 9000)]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.mark.parametrize(("width", "depth"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_one_row_is_linear_in_wide_sums(device, width, depth, biased):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, depth, generator=g).to(device, torch.float16)
    weight = (torch.randn(width, depth, generator=g) * depth**-0.5).to(device, torch.float16)
    bias = torch.randn(width, generator=g).to(device, torch.float16) if biased else None
    out = gemv(x, weight, bias)
    assert out.shape == (1, 1, width)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(out.double(), exact, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("width", "depth"), SIZES)
def test_a_gated_row_is_swiglu_of_the_two_halves(device, width, depth):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(depth, generator=g).to(device, torch.float16)
    weight = (torch.randn(2 * width, depth, generator=g) * depth**-0.5).to(device, torch.float16)
    gate, up = F.linear(x.double(), weight.double()).chunk(2, -1)
    torch.testing.assert_close(gemv(x, weight, gated=True).double(), F.silu(gate) * up, rtol=4e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(2, 8, dtype=torch.float16), torch.ones(4, 8, dtype=torch.float16)),
        (torch.ones(0, 8, dtype=torch.float16), torch.ones(4, 8, dtype=torch.float16)),
        (torch.ones(1, 8, dtype=torch.float16), torch.ones(8, 4, dtype=torch.float16).t()),
        (torch.ones(1, 8, dtype=torch.float64), torch.ones(4, 8, dtype=torch.float64)),
        (torch.ones(1, 8, dtype=torch.float16), torch.ones(4, 8, dtype=torch.float16).requires_grad_()),
    ],
    ids=["two rows", "no row", "strided weight", "float64", "gradients"],
)
def test_what_it_is_not_for_is_left_to_others(device, x, weight):
    assert gemv(x.to(device), weight.to(device)) is None
