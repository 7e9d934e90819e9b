"""MLflow, the real one with a local SQLite store: an evaluation is one run with params, metrics and files."""

import json
import logging
import os

import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import RunResult
from fastkernels.evaluation.lineage.mlflow_store import log_run, logged_rows
from fastkernels.evaluation.lineage.row import history_row
from fastkernels.evaluation.macroeval.score import score
from tests.evaluation.runs import make_run

mlflow = pytest.importorskip("mlflow")

MODELS = {"org/llama-8b": "llm", "bge-m3": "embedding"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one run in it, made with another working directory: (uri, folder of the store, run, id)."""
    folder, elsewhere = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("elsewhere")
    for name in ("report.html", "baseline.log", "candidate.log", "unrelated.bin"):
        (elsewhere / name).write_text(name)
    run = make_run(models=MODELS, failed=("bge-m3",))
    before = os.getcwd()
    os.chdir(elsewhere)
    try:
        made = log_run(run, elsewhere, uri=f"sqlite:///{folder}/mlflow.db")
    finally:
        os.chdir(before)
    assert not (elsewhere / "mlruns").exists()
    return f"sqlite:///{folder}/mlflow.db", folder, run, made


def logged(store):
    uri, _, _, made = store
    return mlflow.MlflowClient(tracking_uri=uri).get_run(made)


def test_params_say_what_was_compared(store):
    params = logged(store).data.params
    run = store[2]
    for task, digest in run.digests.items():
        assert params[f"candidate.{task}"] == digest
    assert params["version.torch"] == run.machine.versions["torch"]
    assert (params["scenario"], params["device"], params["setting.rounds"]) == ("default", "NVIDIA H200", "12")
    assert params["baseline.org_llama-8b"] == "torch.compile reduce-overhead"


def test_metrics_are_the_score_and_each_model_s(store):
    metrics, scored = logged(store).data.metrics, score(store[2])
    assert (metrics["score"], metrics["S"], metrics["C"], metrics["Cov"]) == (0, 0, 0.5, 0.5)
    assert metrics["S_passed"] == scored.S_passed.value
    assert metrics["speed.org_llama-8b.low"] == scored.models[0].speed.low
    assert (metrics["C.bge-m3"], metrics["passed.bge-m3"]) == (0, 0) and "speed.bge-m3" not in metrics


def test_run_is_dated_as_the_evaluation_and_finished(store):
    info = logged(store).info
    assert (info.status, info.run_name, info.start_time) == ("FINISHED", store[2].id, 1795168800000)


def test_artifacts_lie_beside_the_database_and_hold_the_result(store):
    _, folder, run, made = store
    files = {f.name: f for f in (folder / "artifacts" / made / "artifacts").iterdir()}
    assert set(files) == {"result.json", "report.html", "baseline.log", "candidate.log"}
    assert RunResult.model_validate(json.loads(files["result.json"].read_text())) == run


def test_what_is_read_back_is_what_was_logged(store):
    uri, _, run, _ = store
    assert logged_rows(uri) == [history_row(run, score(run))]


def test_a_run_logged_twice_is_read_once(tmp_path, store):
    uri = store[0]
    log_run(store[2], tmp_path, uri=uri)
    assert len(logged_rows(uri)) == 1


def test_many_candidates_fit(tmp_path, store):
    digests = {f"task_{i}": f"{i:064x}" for i in range(150)}
    run = make_run(models={"bge-m3": "embedding"}, digests=digests, seed=5)
    log_run(run, tmp_path, uri=store[0], experiment="another")
    [row] = [r for r in logged_rows(store[0]) if r.id == run.id]
    assert row.digests == digests


def test_logging_is_quiet_and_leaves_the_levels_alone(tmp_path, store, capfd):
    logging.getLogger("mlflow").setLevel(logging.INFO)
    log_run(store[2], tmp_path, uri=f"sqlite:///{tmp_path}/new.db")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("mlflow").level == logging.INFO


def test_a_store_that_is_not_there_is_not_made_by_reading(tmp_path):
    with pytest.raises(EvaluationError, match="no such SQLite file"):
        logged_rows(f"sqlite:///{tmp_path}/mlflow.db")
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database at all, but a text of some length" * 100)
    with pytest.raises(EvaluationError, match=r"MLflow store sqlite:.*mlflow\.db: "):
        logged_rows(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(EvaluationError, match="MLflow store nonsense://x: "):
        log_run(make_run(models=MODELS), tmp_path, uri="nonsense://x")


def test_a_run_without_a_time_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(EvaluationError, match="'yesterday' is not in ISO 8601"):
        log_run(make_run(models=MODELS, date="yesterday"), tmp_path, uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert not list(tmp_path.iterdir())
