"""fastkernels coverage: on a real folder with a tiny config and random weights."""

from __future__ import annotations

import pytest
import typer
from transformers import LlamaConfig
from typer.testing import CliRunner

from fastkernels.cli.coverage import coverage
from fastkernels.evaluation.coverage.result import Coverage

app = typer.Typer()
app.command()(coverage)


@pytest.fixture
def llama(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 64}
    config = LlamaConfig(**sizes, num_hidden_layers=2, architectures=["LlamaForCausalLM"])
    config.save_pretrained(tmp_path / "llama")
    folder = tmp_path / "mine/L1"
    folder.mkdir(parents=True)
    (folder / "rms_norm.py").write_text(
        "from fastkernels.tasks.L1 import rms_norm\nclass RMSNorm(rms_norm.RMSNorm):\n    pass\n"
    )
    return [str(tmp_path / "llama"), "--candidates", str(tmp_path / "mine"), "--tokens", "16"]


def run(*arguments, columns=80):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)})


def test_json_is_the_result_and_nothing_else(llama):
    result = run(*llama, "--batch", "2", "--json")
    assert result.exit_code == 0, result.stderr
    found = Coverage.model_validate_json(result.stdout)
    assert {t.task: t.applied for t in found.tasks if t.applied} == {"rms_norm": 5}
    assert 0 < found.share < 1


def test_tables_fit_and_name_the_clock_the_tasks_and_the_rest(llama):
    result = run(*llama, "--select", "*norm")
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    for text in ("candidates hold 5 of", "of the CPU time", "rms_norm", "left as it is", "LlamaMLP", "Linear"):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("arguments", "told"), [(["./nowhere"], "neither a folder"), (["{llama}", "--candidates", "./none"], "none")]
)
def test_a_mistake_is_one_line(llama, arguments, told):
    result = run(*(a.format(llama=llama[0]) for a in arguments))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("fastkernels coverage: ")
    assert told in result.stderr
