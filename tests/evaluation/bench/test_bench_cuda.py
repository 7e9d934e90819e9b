"""The bench on a GPU: shared memory through CUDA IPC, events beside the wall clock, graphs, work on other streams."""

from __future__ import annotations

import contextlib

import pytest
import torch

from benchmarks.bench_evidence import KERNELS, beside_a_profiler, half_the_bytes
from fastkernels.evaluation.bench.bench import bench
from fastkernels.evaluation.bench.poison import poison_free_memory
from fastkernels.evaluation.bench.times import Times
from fastkernels.tasks.L1.relu import ReLU
from fastkernels.tasks.L1.rms_norm import RMSNorm, Witness
from tests.evaluation.bench.conftest import CUDA, codes, trapped
from tests.evaluation.bench.test_timed import HONEST, PUTS_OFF, READS_AHEAD

pytestmark = pytest.mark.gpu
QUICK = {"device": "cuda", "dtypes": ["float32"], "rounds": 2, "modes": ["eager"], "baselines": {"relu": [ReLU]}}
LARGE = {"device": "cuda", "dtypes": ["bfloat16"], "production": True, "cases": ["llama_2048"],
         "modes": ["eager", "graph"], "baselines": {"rms_norm": [RMSNorm, Witness]}}  # fmt: skip
OTHER_STREAM = """
import torch
SIDE = None
class ReLU(torch.nn.Module):
    def forward(self, x):
        global SIDE
        SIDE = SIDE or torch.cuda.Stream()
        with torch.cuda.stream(SIDE):
            return torch.relu(x)
"""
# Captured, the first call computes what all calls with a place behind its own will be asked for.
ALL_AT_ONCE = """
class ReLU(nn.Module):
    def forward(self, x):
        if not torch.cuda.is_current_stream_capturing():
            return torch.relu(x)
        cls, at = ReLU, x.data_ptr()
        if at not in getattr(cls, "ready", {}):
            flat = torch.as_strided(x, (COUNT, *x.shape), (STEP // x.element_size(), *x.stride()))
            cls.ready = {at + i * STEP: out for i, out in enumerate(torch.relu(flat).unbind())}
        return cls.ready[at]
"""
WORKSPACE = """
class ReLU(nn.Module):
    kept = None
    def forward(self, x):
        if self.kept is None or self.kept.shape != x.shape:
            self.kept = torch.empty_like(x)
        return torch.clamp(x, min=0, out=self.kept).clone()
"""


def test_all_clocks_tell_one_time():
    (case,) = bench({"rms_norm": Witness}, **LARGE).cases
    assert case.gate, case.failures
    assert (case.mode, set(case.ratios)) == ("graph", {"eager", "graph"})
    for timing in case.timing.values():
        assert timing.event_seconds == pytest.approx(timing.seconds, rel=0.1)
        assert timing.kernel_seconds < 1.3 * timing.seconds
    graph = case.timing["graph"]
    assert graph.seconds < 2.0 * graph.kernel_seconds, graph  # kernels alone were hot, the graph's are cold
    assert 0.2 < case.roofline_share < 1.5


def test_a_self_test_reads_one():
    (case,) = bench(self_test=True, targets=["rms_norm"], **LARGE).cases
    assert case.ratio.value == pytest.approx(1.0, abs=0.03), case.ratios


def test_a_candidate_of_half_the_bytes_reads_two():
    row = half_the_bytes(8)
    assert row["as expected"], row


def test_a_profiler_tells_the_same_time():
    (row,) = beside_a_profiler([k for k in KERNELS if k.task == "softmax"], 8).values()
    assert row["as expected"], row


def test_work_on_another_stream_gains_nothing(written):
    for case in bench({"relu": written(OTHER_STREAM).file}, cases=["rows"], **QUICK).cases:
        assert codes(case) or case.score <= 1.05


def test_memory_that_nobody_wrote_is_not_a_number(written):
    empty = "class ReLU(nn.Module):\n    def forward(self, x):\n        return torch.empty_like(x)\n"
    for case in bench({"relu": written(empty).file}, cases=["rows", "batch"], **QUICK).cases:
        assert "WRONG_OUTPUT" in codes(case)


def test_every_free_block_is_poisoned_in_whatever_pool_and_on_whatever_stream():
    side, pool = torch.cuda.Stream(), torch.cuda.MemPool()
    wheres = [contextlib.nullcontext, lambda: torch.cuda.stream(side), lambda: torch.cuda.use_mem_pool(pool)]
    counts = (100, 300_000, 5_000_000)  # floats: of a small segment, of one split, of a large one
    for where in wheres:
        with where():
            kept = [torch.ones(count, device=CUDA) for count in counts]
            torch.cuda.synchronize()
            del kept
    poison_free_memory(CUDA, [400])
    for where in wheres:
        with where():
            for count in counts:
                fresh = torch.empty(count, device=CUDA)
                assert bool(fresh.isnan().all()), (where, count)
                del fresh


@pytest.mark.parametrize(
    ("code", "mode", "wanted"),
    [
        (HONEST, "eager", set()),
        (HONEST, "graph", set()),
        (READS_AHEAD, "eager", {"STALE_OUTPUT"}),
        (PUTS_OFF, "eager", {"TIMED_WRONG"}),
        (READS_AHEAD, "graph", {"STALE_OUTPUT"}),
        (PUTS_OFF, "graph", {"TIMED_WRONG"}),
        (WORKSPACE, "graph", set()),
        (ALL_AT_ONCE.replace("COUNT", "256").replace("STEP", "1024"), "graph", {"STALE_OUTPUT"}),
    ],
)
def test_calls_that_do_the_work_of_others_are_trapped(bound, code, mode, wanted):
    bed = bound(code, mode, 256)
    assert {f.code for _ in range(3) for f in trapped(bed, "suspect")} == wanted


# With the harness's own wait taken away, half a millisecond of work is left on another stream after each batch.
LEAVES_WORK = """
SIDE = None
class ReLU(nn.Module):
    calls = 0
    def forward(self, x):
        global SIDE
        SIDE = SIDE or torch.cuda.Stream()
        out = torch.relu(x)
        ReLU.calls += 1
        if ReLU.calls % 64 == 0:
            torch.cuda.current_stream().synchronize()
            try:
                raise ValueError
            except ValueError as error:
                frame = error.__traceback__.tb_frame
            while frame is not None:
                if hasattr(frame.f_locals.get("self"), "_synchronize"):
                    frame.f_locals["self"]._synchronize = torch.cuda.current_stream().synchronize
                frame = frame.f_back
            with torch.cuda.stream(SIDE):
                torch.cuda._sleep(900_000)
        return out
"""


@pytest.mark.parametrize(("code", "late"), [(HONEST, (0.0, 5e-5)), (LEAVES_WORK, (2e-4, 2e-3))])
def test_what_a_device_still_does_after_the_clock_is_counted_in(bound, code, late):
    trusted, mine = Times(), Times()
    for other, times in ((HONEST, trusted), (code, mine)):
        bed = bound(other, "eager", 64)
        for _ in range(8):
            bed.batch("suspect", 64, times)
    mine.charge(Times(collect=mine.collect, drained=trusted.drained))
    assert late[0] <= mine.late <= late[1], (mine.drained, trusted.drained)
