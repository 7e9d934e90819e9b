"""explain on a GPU: CUDA graphs recorded and replayed, partitions, and reasons that show at a call only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fastkernels
from tests.runtime.test_backend import WIDTH, Looks, Model, opaque

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x).sigmoid() * x


def on_gpu(*sizes: int) -> list[torch.Tensor]:
    return [torch.randn(n, WIDTH, device="cuda") for n in sizes]


def test_each_declared_size_is_recorded_and_replayed() -> None:
    options = {"mode": "reduce-overhead", "batch_sizes": [2, 3, 4]}
    report = fastkernels.explain(Gate().cuda(), on_gpu(2, 3, 4), options=options)
    assert report.whole, report.text()
    assert (report.recordings, report.replays, report.cudagraph_skips) == (3, 3, [])
    assert "3 CUDA graphs recorded, 3 replayed" in report.text()


def test_nothing_is_recorded_where_no_graphs_are_asked_for() -> None:
    report = fastkernels.explain(Gate().cuda(), on_gpu(2))
    assert (report.recordings, report.replays) == (None, None)


class Accumulates(nn.Module):
    """Writes to an argument, which a replay could not find at another address."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        total.add_(x * self.scale)
        return total * 2


# Up to torch 2.11 a static address is not in the key of AOTAutograd's cache.
@torch._inductor.config.patch(force_disable_caches=True)
def test_a_write_to_an_input_is_a_reason_that_shows_at_the_call_and_a_static_address_mends_it() -> None:
    (x, total), model = on_gpu(2, 2), Accumulates().cuda()
    report = fastkernels.explain(model, (x, total), mode="reduce-overhead")
    assert any("mutated inputs" in reason for reason in report.cudagraph_skips), report.text()
    assert (report.recordings, report.replays) == (0, 0)
    torch._dynamo.mark_static_address(total)
    report = fastkernels.explain(model, (x, total), mode="reduce-overhead")
    assert (report.recordings, report.replays, report.cudagraph_skips) == (1, 1, []), report.text()


def test_what_runs_beside_a_partitioned_operator_is_recorded() -> None:
    op = opaque(Looks)
    op.implementation.cuda()
    options = {"mode": "reduce-overhead", "capture_unsafe": ["rms_norm"]}
    # A parameter says which device the model is on.
    model = nn.Sequential(Gate(), Model(op), Gate()).cuda()
    report = fastkernels.explain(model, on_gpu(3), options=options)
    assert [g.partitioned for g in report.graphs] == [[op.name]]
    assert (report.recordings, report.replays, report.cudagraph_skips) == (2, 2, []), report.text()
    op.close()


def test_an_operator_between_elementwise_code_costs_fusions_on_a_gpu_too() -> None:
    op = opaque()
    op.implementation.cuda()
    model = nn.Sequential(Gate(), Model(op)).cuda()
    (graph,) = fastkernels.explain(model, on_gpu(2, 3), options={"batch_sizes": [2, 3]}).graphs
    assert graph.present == {op.name: 1}
    assert graph.kernels == 2 and graph.fusions_lost == 2, graph
    op.close()
