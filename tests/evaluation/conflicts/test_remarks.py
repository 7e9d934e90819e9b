"""What a candidate is not declared for is a remark, a skip with a code: no failure, and never a root."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastkernels import conflicts
from fastkernels.evaluation.conflicts import CODES

REMARKED = sorted((Path(__file__).parent / "candidates" / "remarked").glob("*.py"))


@pytest.mark.parametrize("file", REMARKED, ids=lambda f: f.stem)
def test_the_named_code_is_remarked_on(file):
    stage = CODES[file.stem].stage
    report = conflicts(file, stages=["eager", stage])
    cell = next(c for c in report.cells if c.stage == stage)
    assert (cell.status, cell.code) == ("skip", file.stem)
    assert cell.evidence.text and cell.reason and cell.mend is not None
    assert report.failed == report.roots == []


@pytest.mark.slow
@pytest.mark.parametrize("file", REMARKED, ids=lambda f: f.stem)
def test_no_other_cell_fails(file):
    assert [(c.stage, c.code, c.evidence.text) for c in conflicts(file).cells if c.status == "fail"] == []
