"""docs/conflicts.md and the catalogue say the same."""

from __future__ import annotations

import re
from pathlib import Path

from fastkernels.evaluation.conflicts import CODES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "conflicts.md").read_text()


def test_every_code_is_on_the_page_with_its_meaning_and_mend():
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(CODES)
    for name, code in CODES.items():
        text = sections[name]
        assert code.meaning in text and code.way_out in text and "- Detected by: " in text, name
        assert ("silent)" in text) == code.silent, name


def test_every_example_on_the_page_is_a_test_candidate_and_the_reverse():
    named = set(re.findall(r"\]\(\.\./([^)]+)\)", PAGE))
    candidates = ROOT / "tests/evaluation/conflicts/candidates"
    kinds = ("bad", "bad_cuda", "bad_engine", "remarked")
    there = {str(f.relative_to(ROOT)) for kind in kinds for f in (candidates / kind).glob("*.py")}
    assert named == there
