"""No false alarm: candidates in which nothing is wrong fail no cell."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fastkernels import conflicts

CLEAN = sorted((Path(__file__).parent / "candidates" / "clean").glob("*.py"))
CLEAN_CUDA = sorted((Path(__file__).parent / "candidates" / "clean_cuda").glob("*.py"))
LIBRARIES = ("flashinfer", "deep_gemm")
ON_A_DEVICE = (
    "host_sync",
    "streams",
    "capture",
    "replay",
    "allocation",
    "rng",
    "autotune",
    "workspace",
    "graph_partition",
)
QUICK = ("eager", "mutation", "fake", "dynamo", "recompile", "layout", "host_sync", "capture", "rng", "workspace")


def needs(file, monkeypatch):
    """What a candidate needs to run where there is no GPU."""
    if file.stem.startswith("triton") and not torch.cuda.is_available():
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    if file.stem.startswith("cpp") and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")


@pytest.mark.slow
@pytest.mark.parametrize("file", CLEAN, ids=lambda f: f.stem)
def test_no_cell_fails(file, monkeypatch):
    needs(file, monkeypatch)
    report = conflicts(file, timeout=240.0)
    assert [(c.stage, c.code, c.evidence.text) for c in report.cells if c.status == "fail"] == []
    assert {c.stage: c.reason for c in report.cells if c.status == "skip" and not c.reason} == {}


@pytest.mark.gpu
@pytest.mark.parametrize("file", CLEAN_CUDA, ids=lambda f: f.stem)
def test_no_cell_fails_on_a_device(file):
    for library in LIBRARIES:
        if file.stem.startswith(library):
            pytest.importorskip(library)
    report = conflicts(file)
    assert [(c.stage, c.code, c.evidence.text) for c in report.cells if c.status == "fail"] == []
    assert {c.stage: c.reason for c in report.cells if c.stage in ON_A_DEVICE and c.status != "pass"} == {}


BARE_FLASHINFER = """
import flashinfer
import torch

import fastkernels
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul


@fastkernels.candidate("silu_and_mul", devices=("cuda",), dtypes=(torch.bfloat16, torch.float16))
class BareSiluAndMul(SiluAndMul):
    def forward(self, x):
        if x.shape[-1] // 2 % 8:
            return super().forward(x)
        return flashinfer.activation.silu_and_mul(x.contiguous())
"""


@pytest.mark.gpu
def test_a_compiled_function_of_a_library_called_bare_is_untraceable_and_an_operator_mends_it(tmp_path):
    pytest.importorskip("flashinfer")
    (tmp_path / "bare.py").write_text(BARE_FLASHINFER)
    (root,) = conflicts(tmp_path / "bare.py").roots
    assert (root.code, root.mend.automatic, root.after_mend) == ("GB_UNTRACEABLE_CALL", "opaque", "pass")


def test_no_cell_fails_in_a_sample(tmp_path):
    for name in ("custom_op_silu", "index_embedding", "torch_rms_norm"):
        shutil.copy(next(f for f in CLEAN if f.stem == name), tmp_path)
    report = conflicts(tmp_path, stages=QUICK, buckets=(1, 8, 17))
    assert [(c.candidate, c.stage, c.code, c.evidence.text) for c in report.cells if c.status == "fail"] == []
    assert sum(c.status == "pass" for c in report.cells) >= 15


def test_there_are_eight():
    assert len(CLEAN) >= 8
