"""fastkernels score: runs from files, merged, ranked, as tables and as JSON."""

import pytest
from typer import Typer
from typer.testing import CliRunner

from fastkernels.cli.score import score
from fastkernels.evaluation.macroeval.leaderboard import Leaderboard
from tests.evaluation.runs import make_run

app = Typer()
app.command()(score)


@pytest.fixture
def results(tmp_path):
    """Two machines' runs of one set, and one of another set."""
    runs = [
        make_run(models={"llama-8b": "llm"}, host="a"),
        make_run(models={"bge-m3": "embedding", "vit-base": "vision"}, failed=("vit-base",), seed=1, host="b"),
        make_run(
            models={"llama-8b": "llm", "bge-m3": "embedding", "vit-base": "vision"},
            candidates="my[red]",
            digests={"rms_norm": "7" * 64},
            seed=2,
        ),
    ]
    for name, run in zip("abc", runs, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(run.model_dump_json())
    return [str(tmp_path / name) for name in "abc"]


def invoke(*arguments, columns=140):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)})


def test_json_is_the_leaderboard_and_nothing_else(results):
    result = invoke(*results, "--json")
    board = Leaderboard.model_validate_json(result.stdout)
    assert [(s.score.candidates, round(s.score.score.value, 1)) for s in board.standings] == [
        ("my[red]", 1.2),
        ("shipped", 0.0),
    ]
    assert result.exit_code == 0


def test_tables_show_score_its_three_parts_and_failures(results):
    result = invoke(*results)
    assert result.exit_code == 0
    for words in ("my[red]", "= S 0.000 x C 0.667 x Cov 0.667", "S over passed 1.2", "failed", "merged from 2 runs"):
        assert words in result.stdout


@pytest.mark.parametrize("columns", [80, 140])
def test_no_line_is_wider_than_the_terminal(results, columns):
    assert max(map(len, invoke(*results, columns=columns).stdout.splitlines())) <= columns


def test_incompatible_runs_end_with_one_line_and_status_2(results, tmp_path):
    (tmp_path / "d.json").write_text(make_run(models={"qwen3-moe": "llm"}, device="NVIDIA H100").model_dump_json())
    result = invoke(*results, str(tmp_path / "d.json"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and "device (NVIDIA H200 and NVIDIA H100)" in result.stderr
    forced = invoke(*results, str(tmp_path / "d.json"), "--force")
    assert forced.exit_code == 0 and "mixed by force" in forced.stdout


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    result = invoke(str(tmp_path / "x.json"))
    assert result.exit_code == 2 and "x.json is not a result" in result.stderr
