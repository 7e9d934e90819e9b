"""fastkernels history: one row a run, as a table and as JSON."""

import json

import pytest
from typer import Typer
from typer.testing import CliRunner

from fastkernels.cli.history import history
from fastkernels.evaluation.e2e.evaluate import new_folder
from fastkernels.evaluation.lineage.row import HistoryRow
from tests.evaluation.runs import VERSIONS, make_run

app = Typer()
app.command()(history)


@pytest.fixture
def folder(tmp_path):
    for number, how in enumerate(
        ({"speedup": 1.2}, {"speedup": 1.2}, {"speedup": 1.5, "versions": VERSIONS | {"torch": "2.12.0"}}), 1
    ):
        run = make_run(models={"bge-m3": "embedding"}, date=f"2026-11-0{number}T10:00:00Z", seed=number, **how)
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "result.json").write_text(run.model_dump_json())
    return str(tmp_path)


def invoke(*arguments, columns=160, **env):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns), **env})


def test_table_calls_a_change_a_change_and_noise_none(folder):
    lines = invoke(folder).stdout.splitlines()
    rows = [line for line in lines if line.startswith("2026-11-0")]
    assert "first" in rows[0] and "none beyond noise" in rows[1] and "+2" in rows[2]
    assert any("torch 2.11.0 to 2.12.0" in line for line in lines)


def test_json_is_the_rows_and_nothing_else(folder):
    rows = [HistoryRow.model_validate(r) for r in json.loads(invoke(folder, "--json").stdout)]
    assert [r.apart for r in rows] == [None, False, True]


@pytest.mark.parametrize("columns", [80, 160])
def test_no_line_is_wider_than_the_terminal(folder, columns):
    assert max(map(len, invoke(folder, columns=columns).stdout.splitlines())) <= columns


def test_default_folder_is_where_eval_writes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTKERNELS_RESULTS_DIR", str(tmp_path))
    there = new_folder("minimal", "shipped")
    there.parent.mkdir()
    (tmp_path / "1").rename(there)
    assert len(json.loads(invoke("--json").stdout)) == 1


def test_no_match_ends_with_one_line_and_status_2(folder):
    result = invoke(folder, "--candidate", "nobody")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("fastkernels history: ") and result.stderr.count("\n") == 1
