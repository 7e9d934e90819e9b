"""``fastkernels bench`` from a shell: rows, JSON, and an exit status that says whether a gate failed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from fastkernels.cli.bench import bench, given, show
from fastkernels.errors import CandidateError
from fastkernels.evaluation.bench.result import BenchResult

app = typer.Typer()
app.command()(bench)

CANDIDATE = """
import torch
from torch import nn


class {name}(nn.Module):
    def forward(self, x):
        return {body}
"""
RIGHT = ("SiLU", "torch.sigmoid(x.double()).mul(x).to(x.dtype)")
WRONG = ("ReLU", "x.abs()")
NOT_IMPORTED = ("QuickGELU", "x\nimport no_such_module_at_all")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu", "--rounds", "2", "--case", "rows"])


def folder(path: Path, **candidates: tuple[str, str]) -> Path:
    (path / "L1").mkdir(parents=True)
    for stem, (name, body) in candidates.items():
        (path / "L1" / f"{stem}.py").write_text(CANDIDATE.format(name=name, body=body))
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, BenchResult]:
    """One run of a right, a wrong and an unimportable candidate, as public JSON and as a record."""
    path = tmp_path_factory.mktemp("bench")
    given = folder(path / "mine", silu=RIGHT, relu=WRONG, quick_gelu=NOT_IMPORTED)
    found = run(given, "--json", "--out", path / "bench.json")
    return found, BenchResult.model_validate_json((path / "bench.json").read_text())


def test_exit_status_is_1_where_a_gate_fails(ran: tuple[Result, BenchResult]) -> None:
    assert ran[0].exit_code == 1, ran[0].output


def test_the_public_json_has_every_candidate_and_no_speedup_for_the_wrong(ran: tuple[Result, BenchResult]) -> None:
    public = json.loads(ran[0].stdout)
    assert (public["passed"], public["failed"], public["skipped"], public["all_passed"]) == (1, 2, 0, False)
    told = {s["op"]: (s["status"], s["speedup"] > 0) for s in public["scenarios"]}
    assert told == {
        "silu": ("PASSED", True),
        "relu": ("INCORRECT_NUMERICAL", False),
        "quick_gelu": ("RUNTIME_ERROR", False),  # not skipped
    }


def test_each_case_is_told_when_it_ends_and_is_in_the_file_by_then(ran: tuple[Result, BenchResult]) -> None:
    lines = [line for line in ran[0].stderr.splitlines() if " float32: " in line]
    assert [line.split()[:3] for line in lines] == [
        [str(n), c.task, c.case] for n, c in enumerate(ran[1].cases, start=1)
    ]


def test_where_no_file_can_be_written_nothing_is_benched(tmp_path: Path) -> None:
    found = run(folder(tmp_path / "mine", silu=RIGHT), "--out", tmp_path / "not there" / "bench.json")
    assert found.exit_code == 2
    assert "cannot be written. Give a file in a folder that is there" in found.output


def test_one_failure_makes_the_score_of_the_run_nothing(ran: tuple[Result, BenchResult]) -> None:
    assert ran[1].score == 0.0
    assert {c.task for c in ran[1].cases if c.score > 0} == {"silu"}


def test_each_case_is_one_line_with_time_rate_roofline_ratio_and_gate(ran: tuple[Result, BenchResult]) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    show(console, ran[1])
    lines = console.export_text().splitlines()
    passed = next(line for line in lines if line.startswith("L1 silu rows float32"))
    assert "GB/s" in passed and "%" in passed and "x [" in passed and passed.rstrip().endswith("pass")
    assert any(line.startswith("L1 relu rows float32") and "WRONG_OUTPUT" in line for line in lines)
    assert any("WRONG_OUTPUT" in line and "Way out" in line for line in lines)
    assert any("no_such_module_at_all" in line for line in lines)


def test_a_files_task_is_told_by_its_name_and_its_folders(tmp_path: Path) -> None:
    file = folder(tmp_path, silu=RIGHT) / "L1" / "silu.py"
    assert given(str(file)) == {"silu": file}
    assert given("shipped") == "shipped"
    assert given(str(tmp_path)) == str(tmp_path)
    with pytest.raises(CandidateError, match="no task is called odd"):
        given(str(folder(tmp_path / "other", odd=RIGHT) / "L1" / "odd.py"))


@pytest.mark.slow
def test_exit_status_is_0_where_all_pass(tmp_path: Path) -> None:
    found = run(folder(tmp_path / "mine", silu=RIGHT))
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("/no/such/folder",), "/no/such/folder"),
        (("shipped", "--target", "no_such_task"), "no task is called"),
        (("shipped", "--dtype", "int8"), "floating-point"),
        (("shipped", "--captures", "/no/such/capture"), "/no/such/capture"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(arguments: tuple[str, ...], says: str) -> None:
    found = run(*arguments)
    assert found.exit_code == 2
    assert says in found.output and len(found.output.strip().splitlines()) == 1
