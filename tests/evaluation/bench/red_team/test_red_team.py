"""The bench against those who would fool it: every cheat scores 0 with its reason, no honest candidate is punished."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from fastkernels.evaluation.bench.bench import bench
from fastkernels.evaluation.bench.reasons import REASONS
from fastkernels.evaluation.bench.result import CaseResult

HERE = Path(__file__).parent
CHEATS = sorted((HERE / "cheats").iterdir())
HONEST = sorted((HERE / "honest").iterdir())
NO_GAIN = 1.1  # of a trick that may pass, where every output is right and nothing is won: noise of a few rounds
QUICK = (  # one of each class, each for another task: one run benches all
    "a_returns_early_after_calls",
    "b_by_pointer",
    "c_zeroes_the_input",
    "d_patches_the_reference",
    "e_returns_a_list",
)


def stated(folder: Path, name: str, default: object = None) -> object:
    """A constant of the candidate's file, read without importing it."""
    (file,) = folder.glob("L*/*.py")
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    return default


def marked(folders: list[Path]) -> list[object]:
    return [
        pytest.param(f, id=f.name, marks=[pytest.mark.slow, *([pytest.mark.gpu] if stated(f, "GPU") else [])])
        for f in folders
    ]


def codes_of(cases: list[CaseResult]) -> set[str]:
    return {failure.code for case in cases for failure in case.failures}


@pytest.mark.parametrize("folder", marked(CHEATS))
def test_a_cheat_scores_nothing_and_the_reason_is_told(folder):
    result = bench(folder, rounds=4)
    codes = codes_of(result.cases)
    assert result.cases
    if stated(folder, "DELEGATES"):
        assert not codes
        assert all(case.delegates and case.score <= 1 for case in result.cases if case.ratio)
    elif stated(folder, "OR_NO_GAIN") and not codes:
        assert result.score <= NO_GAIN
    else:
        assert codes & set(stated(folder, "CAUGHT_AS")), codes or "passed"
        assert result.score == 0
        assert result.public()["all_passed"] is False


@pytest.mark.parametrize("folder", marked(HONEST))
def test_an_honest_candidate_is_not_punished(folder):
    result = bench(folder, rounds=4, cases=stated(folder, "CASES"), dtypes=stated(folder, "DTYPES"))
    assert not [str(f) for c in result.cases for f in c.failures if f.code != "SKIPPED"]
    assert any(case.gate for case in result.cases)
    assert result.score > 0


def test_one_cheat_of_each_class_is_caught(tmp_path):
    wanted = {}
    for name in QUICK:
        folder = HERE / "cheats" / name
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        (file,) = folder.glob("L*/*.py")
        wanted[file.stem] = set(stated(folder, "CAUGHT_AS"))
    result = bench(tmp_path, rounds=2, cases=("rows", "few"))
    told = {task: codes_of([c for c in result.cases if c.task == task]) for task in wanted}
    assert {task: bool(told[task] & codes) for task, codes in wanted.items()} == dict.fromkeys(wanted, True), told
    assert result.score == 0
    assert result.public()["all_passed"] is False


def test_every_class_of_cheat_is_there():
    names = [folder.name for folder in CHEATS]
    assert len(names) >= 28
    assert {name[0] for name in names} == set("abcde")
    for folder in CHEATS:
        assert set(stated(folder, "CAUGHT_AS")) <= set(REASONS)
        assert stated(folder, "CAUGHT_AS") or stated(folder, "DELEGATES")
