"""Each deliberately bad candidate is diagnosed with the code that its file is named after, and with no other root."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fastkernels import conflicts
from fastkernels.evaluation.conflicts import CODES

CANDIDATES = Path(__file__).parent / "candidates"
BAD = sorted((CANDIDATES / "bad").glob("*.py"))
BAD_CUDA = sorted([*(CANDIDATES / "bad_cuda").glob("*.py"), *(CANDIDATES / "bad").glob("CG_*.py")])
NOT_MENDED = ("CG_CPU_TENSOR",)  # on a device it raises in eager, behind an operator as well
REFUSED = ("AL_OUTPUTS_SHARE__custom_op",)  # torch itself raises in eager, behind an operator as well
TIMEOUTS = {"HANG": 12.0}  # seconds; the others end by themselves
SAMPLE = (
    "DT_OUTPUT_DTYPE",
    "FK_DTYPE",
    "FK_SHAPE",
    "GB_DATA_DEP",
    "GB_SIDE_EFFECT",
    "MU_UNDECLARED",
    "ST_HISTORY",
    "ST_STALE_WEIGHT",
)
TWO_DEVICES = ("CG_NCCL_CAPTURE",)
QUICK = ("eager", "mutation", "weights", "fake", "dynamo")


def named(file):
    """A file is named after its code; after two underscores, after one way of several to come to it."""
    return file.stem.partition("__")[0]


@pytest.mark.slow
@pytest.mark.parametrize("file", BAD, ids=lambda f: f.stem)
def test_the_named_code_is_the_only_root(file):
    report = conflicts(file, timeout=TIMEOUTS.get(file.stem, 120.0))
    assert [c.code for c in report.roots] == [named(file)]
    assert all(c.root_cause or c.caused_by for c in report.failed)
    root = report.roots[0]
    assert root.evidence.text and root.mend is not None
    mended = root.mend.automatic == "opaque" and file.stem not in REFUSED
    assert root.after_mend == "pass" if mended else root.after_mend.startswith(("not run", "fail"))
    assert (not report.failed) == (CODES[named(file)].severity == "warning")


@pytest.mark.gpu
@pytest.mark.parametrize("file", BAD_CUDA, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_the_named_code_is_the_only_root_on_a_device(file):
    if named(file) in TWO_DEVICES and torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    report = conflicts(file)
    assert [c.code for c in report.roots] == [named(file)]
    assert all(c.root_cause or c.caused_by for c in report.failed)
    root = report.roots[0]
    assert root.evidence.text and not root.predicted
    partition = root.mend.automatic == "partition" and named(file) not in NOT_MENDED
    assert root.after_mend == "pass" if partition else root.after_mend != "pass"


@pytest.mark.gpu
def test_one_candidate_takes_less_than_a_minute_on_a_device():
    assert conflicts(CANDIDATES / "clean_cuda" / "triton_op_silu.py").seconds < 60


def test_the_named_code_is_the_only_root_in_a_sample(tmp_path):
    for code in SAMPLE:
        shutil.copy(next(f for f in BAD if f.stem == code), tmp_path)
    report = conflicts(tmp_path, stages=QUICK, buckets=(1, 8, 64))
    found = {Path(name).stem: [c.code for c in report.of(name) if c.root_cause] for name in report.candidates()}
    assert found == {code: [code] for code in SAMPLE}


def test_there_is_a_bad_candidate_for_thirty_codes():
    assert len(BAD) >= 30
    assert {named(f) for f in (*BAD, *BAD_CUDA)} <= set(CODES)
