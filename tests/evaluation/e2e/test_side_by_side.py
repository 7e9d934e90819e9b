"""The same run over Ray as in this process: each entry a job, results and records laid into the run's folder."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastkernels.evaluation.macroeval.load import load_run
from tests.evaluation.e2e.tiny_scenario import CANDIDATES, scenario_file


@pytest.mark.slow
def test_an_evaluation_over_ray_leaves_what_one_in_this_process_does(tmp_path):
    pytest.importorskip("ray")
    command = [
        *(sys.executable, "-m", "fastkernels.cli.main", "eval", str(scenario_file(tmp_path))),
        *("--candidates", str(CANDIDATES / "right"), "--out", str(tmp_path / "run")),
        *("--device", "cpu", "--threads", "1", "--ray-address", "local"),
        *("--mlflow", f"sqlite:///{tmp_path}/mlflow.db"),
    ]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}  # a process of its own: Ray takes one cluster in each
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (model,) = load_run(tmp_path / "run").models
    assert (model.passed, model.score) == (True, 1.0)
    assert (tmp_path / "run" / "00-tiny-llama" / "records.jsonl").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    assert "right" in done.stdout
