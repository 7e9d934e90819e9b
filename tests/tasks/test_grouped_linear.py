"""The product by groups is one operator in a trace, right in values and gradients, with groups that are empty."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.grouped_linear import grouped_linear, register_grouped_linear


def by_hand(x, weight, ends):
    bounds = [0, *ends.tolist()]
    return torch.cat([F.linear(x[a:b], w) for a, b, w in zip(bounds, bounds[1:], weight, strict=False)])


def test_a_trace_holds_one_operator_that_passes_opcheck():
    register_grouped_linear()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=g, requires_grad=True)
    weight = torch.randn(4, 3, 5, generator=g, requires_grad=True)
    ends = torch.tensor([2, 2, 6, 7])
    torch.library.opcheck(torch.ops.fastkernels_tasks.grouped_linear.default, (x, weight, ends))
    compiled = torch.compile(grouped_linear, backend="aot_eager", fullgraph=True)
    out, want = compiled(x, weight, ends), by_hand(x, weight, ends)
    torch.testing.assert_close(out, want)
    cotangent = torch.randn(out.shape, generator=g)
    for got, true in zip(
        torch.autograd.grad(out, (x, weight), cotangent),
        torch.autograd.grad(want, (x, weight), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(got, true)
