"""Each deliberately bad candidate is diagnosed with the code that its file is named after, and with no other root."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fastkernels import conflicts
from fastkernels.evaluation.conflicts import CODES

BAD = sorted((Path(__file__).parent / "candidates" / "bad").glob("*.py"))
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
QUICK = ("eager", "mutation", "weights", "fake", "dynamo")


@pytest.mark.slow
@pytest.mark.parametrize("file", BAD, ids=lambda f: f.stem)
def test_the_named_code_is_the_only_root(file):
    report = conflicts(file, timeout=TIMEOUTS.get(file.stem, 120.0))
    assert [c.code for c in report.roots] == [file.stem]
    assert all(c.root_cause or c.caused_by for c in report.failed)
    root = report.roots[0]
    assert root.evidence.text and root.mend is not None
    assert root.after_mend == "pass" if root.mend.automatic == "opaque" else root.after_mend.startswith("not run")
    assert (not report.failed) == (CODES[file.stem].severity == "warning")


def test_the_named_code_is_the_only_root_in_a_sample(tmp_path):
    for code in SAMPLE:
        shutil.copy(next(f for f in BAD if f.stem == code), tmp_path)
    report = conflicts(tmp_path, stages=QUICK, buckets=(1, 8, 64))
    found = {Path(name).stem: [c.code for c in report.of(name) if c.root_cause] for name in report.candidates()}
    assert found == {code: [code] for code in SAMPLE}


def test_there_is_a_bad_candidate_for_thirty_codes():
    assert len(BAD) >= 30
    assert {f.stem for f in BAD} <= set(CODES)
