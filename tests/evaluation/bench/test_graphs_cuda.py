"""Graph mode on a GPU: what a chain of captured calls costs and returns, and what its check finds out."""

from __future__ import annotations

import time

import pytest
import torch

from fastkernels.evaluation.bench.bench import bench
from fastkernels.evaluation.bench.chain import Chain
from fastkernels.evaluation.bench.graphed import captured
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L1.relu import ReLU
from fastkernels.tasks.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.L1.topk_softmax import TopkSoftmax
from fastkernels.tasks.L2.fused_experts import Witness as FusedExperts
from fastkernels.tasks.task import Case
from tests.evaluation.bench.conftest import CUDA, trapped
from tests.evaluation.bench.test_bench_cuda import WORKSPACE
from tests.evaluation.bench.test_timed import HONEST

pytestmark = pytest.mark.gpu
QUICK = {"device": "cuda", "dtypes": ["float32"], "rounds": 2, "modes": ["eager", "graph"],
         "baselines": {"relu": [ReLU]}}  # fmt: skip
CALLS = 2048
GRAPH_INSIDE = """
class ReLU(nn.Module):
    graphs = {}
    def forward(self, x):
        key = (x.shape, x.stride(), x.dtype)
        if x.numel() == 0:
            return torch.relu(x)
        if key not in self.graphs:
            static, graph = x.clone(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = torch.relu(static)
            self.graphs[key] = graph, static, out
        graph, static, out = self.graphs[key]
        static.copy_(x)
        graph.replay()
        return out.clone()
"""
# Captured, only the first call reads the weights.
PACKS_ONCE = """
from fastkernels.tasks.L1 import linear
class Linear(linear.Linear):
    packed = None
    def forward(self, x):
        if not torch.cuda.is_current_stream_capturing():
            return super().forward(x)
        if self.packed is None:
            self.packed = self.weight.t().contiguous()
        return x @ self.packed
"""
# Captured, calls only copy their inputs; the last does the work of all.
LAST_DOES_ALL = """
class ReLU(nn.Module):
    held = []
    def forward(self, x):
        if not torch.cuda.is_current_stream_capturing():
            return torch.relu(x)
        self.held.append((x.clone(), torch.empty_like(x)))
        out = self.held[-1][1]
        if len(self.held) == COUNT:
            for private, late in self.held:
                torch.clamp(private, min=0, out=late)
        return out
"""
FAILS_HALF_WAY = """
class ReLU(nn.Module):
    captures = 0
    def forward(self, x):
        if torch.cuda.is_current_stream_capturing():
            ReLU.captures += 1
            if ReLU.captures >= 5:
                x.sum().item()
        return torch.relu(x)
"""


def least_seconds(launch, repeats=7):
    """Of the device, by events around it; the least of some."""
    found = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        launch()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return min(found)


def test_a_chain_costs_what_one_capture_of_the_same_calls_does():
    slots = [(torch.randn(3, 64, device=CUDA),) for _ in range(CALLS)]
    calls = captured(torch.relu, slots)
    start = time.perf_counter()
    chain = Chain(calls)
    composing = time.perf_counter() - start
    whole = torch.cuda.CUDAGraph()
    with torch.cuda.graph(whole):
        kept = [torch.relu(x) for (x,) in slots]
    seconds = least_seconds(chain.launch), least_seconds(whole.replay)
    hosts = []
    for _ in range(3):
        start = time.perf_counter()
        chain.launch()
        hosts.append(time.perf_counter() - start)
        chain.wait()
    assert all(torch.equal(call.outputs, one) for call, one in zip(calls, kept, strict=True))
    assert seconds[0] < 1.15 * seconds[1], seconds
    assert composing < 2.0
    assert min(hosts) < 2e-3, hosts


def test_memory_used_on_several_streams_is_taken_over_by_later_calls():
    side, count = torch.cuda.Stream(), 1 << 22

    def forward(x):
        wide = x.new_zeros(count)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            out = x + wide[: len(x)]
        wide.record_stream(side)
        torch.cuda.current_stream().wait_stream(side)
        return out

    before = torch.cuda.memory_reserved()
    calls = captured(forward, [(torch.ones(64, device=CUDA),) for _ in range(64)])
    assert torch.cuda.memory_reserved() - before < 16 * count * 4, "64 calls would take 1 GiB"
    chain = Chain(calls)
    chain.launch()
    chain.wait()
    assert all(bool((call.outputs == 1).all()) for call in calls)


def test_a_graph_of_many_calls_gives_the_outputs_of_each(bound):
    bed = bound(HONEST, "graph", 300)
    runner = bed.runners["suspect"]
    for calls in (300, 16, 300):
        bed.renew()
        order = bed.order(calls)
        contents = [bed.ring.contents(slot) for slot in order]
        runner.timed(order)
        runner.stop()
        collected = bed.collected("suspect", order)
        runner.stop()
        assert all(torch.equal(collected.pick(i).outputs, torch.relu(x)) for i, (x,) in enumerate(contents))


def test_long_sums_of_one_row_are_as_eager_ones(bound):
    def draw(generator, device, dtype):
        return (torch.randn(1, 16384, generator=generator, device=generator.device).to(device, dtype),)

    case = Case(name="deep", init={"input_size": 16384, "output_size": 128, "bias": True}, draw=draw)
    bed = bound(Linear, "graph", 300, "linear", case)
    runner = bed.runners["suspect"]
    bed.renew()
    order = bed.order(300)
    contents = [bed.ring.contents(slot) for slot in order]
    runner.timed(order)
    runner.stop()
    collected = bed.collected("suspect", order)
    runner.stop()
    for i, (x,) in enumerate(contents):
        torch.testing.assert_close(collected.pick(i).outputs, bed.site.reference(x), rtol=1e-4, atol=1e-4)
    assert [bed.trap("suspect").check("suspect") for _ in range(3)] == [set()] * 3


@pytest.mark.parametrize(
    ("cls", "task"),
    [
        (RotaryEmbedding, "rotary_emb"),
        (TopkSoftmax, "topk_softmax"),
        (FusedExperts, "fused_experts"),
        (Linear, "linear"),
    ],
)
def test_a_check_shows_nothing_in_honest_calls(bound, cls, task):
    bed = bound(cls, "graph", 64, task)
    assert [bed.trap("suspect").check("suspect") for _ in range(4)] == [set()] * 4


@pytest.mark.parametrize("slots", [16, 256])
def test_weights_that_the_first_call_prepares_are_old_ones(bound, slots):
    (failure,) = trapped(bound(PACKS_ONCE, "graph", slots, "linear", "rows_no_bias"), "suspect")
    assert (failure.code, "parameters" in failure.detail) == ("STALE_OUTPUT", True)


@pytest.mark.parametrize("slots", [16, 256])
def test_work_that_the_last_call_does_for_all_is_caught(bound, slots):
    (failure,) = trapped(bound(LAST_DOES_ALL.replace("COUNT", str(slots)), "graph", slots), "suspect")
    assert failure.code == "TIMED_WRONG"


def test_a_capture_that_fails_half_way_costs_graph_mode_only(written):
    found = bench({"relu": written(FAILS_HALF_WAY).file}, cases=["rows", "batch"], **QUICK).cases
    for case in found:
        assert case.gate, case.failures
        assert case.mode == "eager"
        assert "no graph mode" in " ".join(case.notes)
    assert len(found) == 2


@pytest.mark.parametrize(("code", "mode"), [(WORKSPACE, "graph"), (GRAPH_INSIDE, None)])
def test_an_honest_candidate_is_scored_as_a_graph_or_else_eager(written, code, mode):
    for case in bench({"relu": written(code).file}, cases=["rows"], **QUICK).cases:
        assert case.gate, case.failures
        assert case.mode == "graph" if mode else case.mode == "graph" or "no graph mode" in " ".join(case.notes)
