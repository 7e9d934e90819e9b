"""fastkernels report: real result files in, the three forms out, one line for every mistake."""

import json

import pytest
import typer
from typer.testing import CliRunner

from fastkernels.cli.report import report
from tests.evaluation.runs import make_run

app = typer.Typer()
app.command("report")(report)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text(make_run(models={"bge-m3": "embedding"}).model_dump_json())
    return tmp_path / "run"


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize(("suffix", "start"), [(".html", "<!doctype html>"), (".md", "# shipped"), (".json", "[")])
def test_the_suffix_says_the_form(folder, tmp_path, suffix, start):
    if suffix == ".html":
        pytest.importorskip("plotly")
    out = tmp_path / f"deep/report{suffix}"
    result = run(folder, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert out.read_text(encoding="utf-8").lstrip().startswith(start)
    assert result.stdout.startswith("shipped is 1.")
    assert str(out) in result.stdout


def test_folder_and_file_are_the_same_run_and_several_stand_side_by_side(folder, tmp_path):
    out = tmp_path / "both.json"
    assert run(folder, folder / "result.json", "-o", out).exit_code == 0
    one, other = json.loads(out.read_text())
    assert one == other


def test_mistakes_are_one_line_with_status_2(folder, tmp_path):
    (tmp_path / "broken.json").write_text('{"id": 3}')
    for arguments, fragment in [
        ((tmp_path / "none", "-o", tmp_path / "a.md"), "no such file"),
        ((tmp_path / "broken.json", "-o", tmp_path / "a.md"), "not a result of fastkernels eval"),
        ((folder, "-o", tmp_path / "a.pdf"), "not in '.pdf'"),
        ((folder, "-o", folder / "result.json/a.md"), "cannot be written"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith("fastkernels report: ")
        assert result.stderr.count("\n") == 1
        assert fragment in result.stderr
