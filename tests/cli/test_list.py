"""fastkernels list: every task, and the shipped kernels with their limits."""

import json

import pytest
import torch
from typer.testing import CliRunner

from fastkernels import Supports
from fastkernels.cli.list import limits
from fastkernels.cli.main import app
from fastkernels.tasks import all_tasks


def run(*arguments, columns=100):
    result = CliRunner().invoke(app, ["list", *arguments], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_json_names_every_task():
    listed = {entry["name"]: entry for entry in json.loads(run("--json"))}
    assert set(listed) == set(all_tasks())
    mlp = listed["gated_mlp"]
    assert mlp["interface"].startswith("LlamaMLP(hidden_size, intermediate_size")
    assert mlp["interface"].endswith(".forward(x)")
    assert mlp["stems"] == ["gated_mlp", "llama_mlp"]
    assert mlp["shipped"] == "L2/gated_mlp.py"
    assert "silu_and_mul" in mlp["parts"]


def test_level_narrows():
    assert {entry["level"] for entry in json.loads(run("--level", "2", "--json"))} == {2}


def test_no_such_level():
    assert CliRunner().invoke(app, ["list", "--level", "5"]).exit_code == 2


@pytest.mark.parametrize("columns", [80, 120])
def test_table_fits(columns):
    out = run(columns=columns)
    assert max(map(len, out.splitlines())) <= columns
    assert "rms_norm" in out


def test_limits_in_words():
    def even_width(facts):
        """Even widths."""

    supports = Supports(devices=("cuda",), dtypes=(torch.bfloat16, torch.float16), facts=even_width, training=True)
    assert limits(supports) == ("cuda", "bfloat16 or float16", "facts: Even widths.", "trains")
