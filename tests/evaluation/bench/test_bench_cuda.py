"""The bench on a GPU: shared memory through CUDA IPC, events beside the wall clock, graphs, work on other streams."""

from __future__ import annotations

import pytest

from fastkernels.evaluation.bench.bench import bench
from fastkernels.tasks.L1.rms_norm import Witness
from tests.evaluation.bench.conftest import codes

pytestmark = pytest.mark.gpu
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


def test_all_clocks_tell_one_time():
    (case,) = bench({"rms_norm": Witness}, device="cuda", dtypes=["bfloat16"], production=True,
                    cases=["llama_2048"]).cases  # fmt: skip
    assert case.gate, case.failures
    eager = case.timing["eager"]
    assert eager.event_seconds == pytest.approx(eager.seconds, rel=0.1)
    assert eager.kernel_seconds < 1.3 * eager.seconds
    assert set(case.timing) >= {"eager", "graph"}
    assert 0.2 < case.roofline_share < 1.5


def test_a_self_test_reads_one():
    (case,) = bench(self_test=True, targets=["rms_norm"], device="cuda", dtypes=["bfloat16"], production=True,
                    cases=["llama_2048"]).cases  # fmt: skip
    assert case.ratio.value == pytest.approx(1.0, abs=0.03)


def test_work_on_another_stream_gains_nothing(tmp_path):
    (tmp_path / "L1").mkdir()
    (tmp_path / "L1" / "relu.py").write_text(OTHER_STREAM)
    for case in bench(tmp_path, device="cuda", dtypes=["float32"], cases=["rows"]).cases:
        assert codes(case) or case.score <= 1.05


def test_memory_that_nobody_wrote_is_not_a_number(tmp_path):
    (tmp_path / "L1").mkdir()
    (tmp_path / "L1" / "relu.py").write_text(
        "import torch\nclass ReLU(torch.nn.Module):\n    def forward(self, x):\n        return torch.empty_like(x)\n"
    )
    for case in bench(tmp_path, device="cuda", dtypes=["float32"], cases=["rows", "batch"]).cases:
        assert "WRONG_OUTPUT" in codes(case)
