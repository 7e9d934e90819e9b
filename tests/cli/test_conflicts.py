"""fastkernels conflicts: exit status, JSON and a page that needs nothing else."""

import json
from pathlib import Path

from typer.testing import CliRunner

from fastkernels.cli.main import app

CANDIDATES = Path(__file__).parents[1] / "evaluation" / "conflicts" / "candidates"


def run(*arguments):
    return CliRunner().invoke(app, ["conflicts", *map(str, arguments)], env={"COLUMNS": "100"})


def test_a_broken_contract_is_exit_status_1_in_every_form(tmp_path):
    page = tmp_path / "matrix.html"
    bad = CANDIDATES / "bad" / "DT_OUTPUT_DTYPE.py"
    result = run(bad, "--stage", "eager", "--bucket", 8, "--json", "--html", page)
    assert result.exit_code == 1
    cells = json.loads(result.stdout)["cells"]
    assert [(c["stage"], c["status"], c["code"]) for c in cells] == [
        ("import", "pass", None),
        ("eager", "fail", "DT_OUTPUT_DTYPE"),
    ]
    html = page.read_text()
    assert "DT_OUTPUT_DTYPE" in html and "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    assert "http" not in html and "<script" not in html


def test_a_clean_candidate_is_exit_status_0_and_a_table_that_fits():
    result = run(CANDIDATES / "clean" / "view_softmax.py", "--stage", "eager", "--bucket", 8)
    assert result.exit_code == 0
    assert "no conflict" in result.stdout and max(map(len, result.stdout.splitlines())) <= 100


def test_mistakes_are_one_line_and_exit_status_2(tmp_path):
    for arguments in ((tmp_path / "none",), (tmp_path,), (CANDIDATES / "bad", "--stage", "eeger")):
        result = run(*arguments)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
