"""The public verb: what is given is judged and timed against every baseline, and nothing is dropped."""

from __future__ import annotations

import os

import pytest
import torch

from fastkernels.errors import CandidateError, EvaluationError
from fastkernels.evaluation.bench import benched as module
from fastkernels.evaluation.bench.baselines.baselines import ImplementationSpec
from fastkernels.evaluation.bench.bench import bench
from fastkernels.tasks import get_task
from fastkernels.tasks.L1.rms_norm import HalfRow, Witness
from tests.evaluation.bench.conftest import codes


def test_a_class_is_judged_and_timed_against_every_baseline():
    result = bench({"rms_norm": Witness}, cases=["rows", "empty"], rounds=2)
    rows, empty = result.cases
    assert rows.gate and empty.gate
    assert {b.name for b in rows.baselines} >= {"reference", "TorchRMSNorm"}
    assert rows.timing["eager"].seconds > 0
    assert rows.score == rows.ratio.value > 0
    assert result.public()["passed"] == 2


def test_a_wrong_baseline_is_left_out_and_told(monkeypatch):
    wrong = ImplementationSpec(name="quick", module=HalfRow.__module__, cls=HalfRow.__qualname__)
    known = module.baselines_for
    monkeypatch.setattr(module, "baselines_for", lambda *args: [*known(*args), wrong])
    (case,) = bench({"rms_norm": Witness}, cases=["rows"], rounds=2).cases
    assert "quick" not in {b.name for b in case.baselines}
    assert any("baseline quick: left out" in note for note in case.notes)


@pytest.mark.slow
def test_an_anti_witness_scores_nothing():
    (case,) = bench({"rms_norm": HalfRow}, cases=["rows"], rounds=2).cases
    assert (case.status, case.score) == ("INCORRECT_NUMERICAL", 0)
    assert case.error > case.limit


@pytest.mark.slow
def test_a_folders_files_run_in_other_processes_only(tmp_path):
    (tmp_path / "L1").mkdir()
    (tmp_path / "L1" / "relu.py").write_text(
        "import os, torch\n"
        f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} ')\n"
        "class ReLU(torch.nn.Module):\n    def forward(self, x):\n        return torch.relu(x)\n"
    )
    (tmp_path / "L1" / "no_such_task.py").write_text("raise SystemError\n")
    result = bench(tmp_path, cases=["rows"], rounds=2)
    assert [c.status for c in result.cases] == ["PASSED"]
    assert result.notes == ["L1/no_such_task.py: no task has this name"]
    assert str(os.getpid()) not in (tmp_path / "pids").read_text().split()


def test_what_does_not_import_is_a_failure_not_a_skip(benched):
    result = benched("raise RuntimeError('no toolchain')")
    assert codes(result) == {"IMPORT_ERROR"}
    assert "no toolchain" in result.failures[0].detail
    assert result.score == 0


def test_a_constructor_that_does_not_fit_is_told(benched):
    code = "class Linear(nn.Module):\n    def __init__(self): super().__init__()\n    def forward(self, x): return x\n"
    assert codes(benched(code, "linear", case=next(c.name for c in get_task("linear").cases()))) == {"BUILD_ERROR"}


@pytest.mark.slow
def test_a_candidate_that_only_calls_the_reference_says_so_and_never_wins(benched):
    code = "from fastkernels.tasks import get_task\nclass ReLU(get_task('relu').interface):\n    pass\n"
    result = benched(code)
    assert result.status == "PASSED"
    assert result.delegates and result.score <= 1


def test_what_is_declined_is_skipped_with_its_reason(benched):
    code = (
        "from fastkernels.runtime.candidate import candidate\n"
        "@candidate('relu', dtypes=(torch.bfloat16,))\n"
        "class ReLU(nn.Module):\n    def forward(self, x): return torch.relu(x)\n"
    )
    result = benched(code)
    assert (result.status, codes(result)) == ("SKIPPED", {"SKIPPED"})


def test_a_class_inside_a_function_is_refused_with_the_way_out():
    class ReLU(torch.nn.Module):
        def forward(self, x):
            return torch.relu(x)

    with pytest.raises(CandidateError, match=r"Put it into a file, or give a folder with L1/relu\.py"):
        bench({"relu": ReLU})


NORM = """
import torch
from fastkernels import candidate
from fastkernels.tasks.L1 import rms_norm

@candidate("rms_norm"{declared})
class RMSNorm(rms_norm.RMSNorm):
    def forward(self, x, residual=None):
        found = super().forward(x, residual)
        return found if residual is None else ({first}, found[1])
"""
OUTER = """
from fastkernels.tasks.L2 import fused_add_rms_norm

class FusedAddRMSNorm(fused_add_rms_norm.FusedAddRMSNorm):
    def forward(self, x, residual):
        return self.norm(x, residual)
"""


@pytest.mark.parametrize(
    ("declared", "first", "inside", "status"),
    [
        ("", "found[0]", True, "PASSED"),
        ("", "found[0] * 2", True, "INCORRECT_NUMERICAL"),
        (', devices=("cuda",)', "found[0] * 2", False, "PASSED"),
    ],
)
def test_candidates_of_lower_levels_stand_inside_as_where_they_are_deployed(tmp_path, declared, first, inside, status):
    for name, code in (("L1/rms_norm", NORM), ("L2/fused_add_rms_norm", OUTER)):
        file = tmp_path / f"{name}.py"
        file.parent.mkdir()
        file.write_text(code.replace("{declared}", declared).replace("{first}", first))
    result = bench(tmp_path, targets=["fused_add_rms_norm"], cases=["batch_residual"], rounds=2, dtypes=["float32"])
    (case,) = result.cases
    assert (case.status, "with the candidates for rms_norm inside" in case.notes) == (status, inside)


KERNEL = """
import os
os.environ.setdefault("TRITON_INTERPRET", "1")
import triton
import triton.language as tl

@triton.jit
def {name}(x, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < 1), mask=at < 1)
"""


def test_kernels_of_candidates_inside_do_not_stand_for_those_of_the_candidate_itself(tmp_path):
    norm = NORM.format(declared="", first="found[0]").replace(
        "        return", "        inner[(1,)](torch.zeros(2), BLOCK=2)\n        return"
    )
    for name, code in (
        ("L1/rms_norm", KERNEL.format(name="inner") + norm),
        ("L2/fused_add_rms_norm", KERNEL.format(name="outer") + OUTER),
    ):
        file = tmp_path / f"{name}.py"
        file.parent.mkdir()
        file.write_text(code)
    result = bench(tmp_path, targets=["fused_add_rms_norm"], cases=["batch_residual"], rounds=2, dtypes=["float32"])
    (case,) = result.cases
    assert [(f.code, f.detail) for f in case.failures] == [("NO_LAUNCH", "no case launched any of triton kernel outer")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounds": 1}, "2 at least"),
        ({"dtypes": ["int7"]}, "no floating-point dtype"),
        ({"levels": [4]}, "nothing to bench"),
        ({"targets": ["rms_norm", "silu"]}, "silu: no candidate"),
        ({"cases": ["rows", "raws"]}, "no small case is named raws, of rms_norm. There are .*rows"),
        ({"cases": ["rows"], "production": True}, "no production case is named rows"),
        ({"captures": []}, "there is no captured case, of rms_norm"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options, said):
    with pytest.raises(EvaluationError, match=said):
        bench({"rms_norm": Witness}, **options)


def test_what_was_found_is_told_whenever_a_case_ends():
    seen = []
    result = bench({"rms_norm": Witness}, cases=["rows", "empty"], rounds=2, on_case=seen.append)
    assert [[c.case for c in so_far.cases] for so_far in seen] == [["rows"], ["rows", "empty"]]
    assert seen[-1].cases == result.cases


@pytest.mark.slow
def test_a_self_test_reads_one():
    result = bench(self_test=True, targets=["rms_norm", "relu"], cases=["rows", "batch"], rounds=8)
    for case in result.cases:
        assert case.gate, case.failures
        assert case.ratio.low <= 1.05
        assert case.ratio.high >= 0.95
        assert case.ratio.value == pytest.approx(1.0, abs=0.15)
