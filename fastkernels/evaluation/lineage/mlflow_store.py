"""Evaluations as MLflow runs: what was compared as params, what came out as metrics, and the files."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import Interval, RunResult
from fastkernels.evaluation.lineage.row import HistoryRow, history_row
from fastkernels.evaluation.macroeval.load import RESULT
from fastkernels.evaluation.macroeval.merge import LIBRARIES
from fastkernels.evaluation.macroeval.result import Score
from fastkernels.evaluation.macroeval.score import model_names, score

if TYPE_CHECKING:
    from mlflow import MlflowClient

REPORT = "report.html"
SQLITE = "sqlite:///"
TAGS = ("id", "date", "host", "digest", "conditions")
BATCH = 100  # params, tags or metrics that MLflow takes at once


def log_run(run: RunResult, folder: Path, *, uri: str, experiment: str = "fastkernels") -> str:
    """Keeps one evaluation as one MLflow run, dated as the evaluation; returns the run's id in MLflow.

    Params: candidates and their hashes, versions, scenario, device, settings, each model's baseline. Metrics: score, S,
    C, Cov with intervals, and speed, throughput, latency and correctness of each model. Artifacts: ``result.json``,
    and from ``folder`` ``report.html`` and the logs of the arms, where they are. The artifacts of an experiment that is
    made here lie beside the file of a SQLite store, or where a server says. MLflow's telemetry is turned off in this
    process.

    Raises:
        EvaluationError: mlflow is not installed, the store cannot be written, or the run cannot be scored or dated.
    """
    scored, started = score(run), _milliseconds(run)
    with _client(uri) as client:
        found = client.get_experiment_by_name(experiment)
        place = None if found else _artifacts_beside(uri)
        where = found.experiment_id if found else client.create_experiment(experiment, artifact_location=place)
        row = history_row(run, scored)
        tags = {f"fastkernels.{tag}": str(getattr(row, tag)) for tag in TAGS} | {"mlflow.note.content": scored.text()}
        made = client.create_run(where, start_time=started, tags=tags, run_name=run.id)
        status = "FAILED"
        try:
            _log_values(client, made.info.run_id, _params(run), _metrics(run, scored))
            client.log_text(made.info.run_id, run.model_dump_json(indent=2), RESULT)
            for file in _files(run, folder):
                client.log_artifact(made.info.run_id, str(file))
            status = "FINISHED"
        finally:
            client.set_terminated(made.info.run_id, status=status)
    return str(made.info.run_id)


def logged_rows(uri: str) -> list[HistoryRow]:
    """The evaluations that an MLflow store holds, of all its experiments; of one that was logged twice the later.

    Raises:
        EvaluationError: mlflow is not installed, or the store is not there or cannot be read.
    """
    file = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if uri.startswith(SQLITE) and not file.is_file():  # MLflow would make an empty one
        raise EvaluationError(f"{uri}: no such SQLite file. Give the uri that runs were logged to.")
    rows: dict[tuple[str, str, str], HistoryRow] = {}
    with _client(uri) as client:
        experiments = [e.experiment_id for e in client.search_experiments()]
        token: str | None = None
        while True:
            page = client.search_runs(
                experiments,
                filter_string="tags.`fastkernels.id` != '' and attributes.status = 'FINISHED'",
                order_by=["attributes.end_time DESC"],
                page_token=token,
            )
            for found in page:
                row = _row(found.data)
                rows.setdefault(row.key, row)
            token = page.token
            if not token:
                return list(rows.values())


@contextmanager
def _client(uri: str) -> Iterator[MlflowClient]:
    """A client of the store, with MLflow's messages about itself held back and its errors as ours."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    os.environ.setdefault("DO_NOT_TRACK", "true")
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError  # of MLflow's own stores
    except ImportError as error:
        raise EvaluationError("lineage needs MLflow: pip install fastkernels[mlflow].") from error
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield MlflowClient(tracking_uri=uri)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise EvaluationError(f"MLflow store {uri}: {str(error).strip().partition(chr(10))[0]}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _milliseconds(run: RunResult) -> int:
    """Start of the run since 1970."""
    try:
        start = datetime.fromisoformat(run.date)
    except ValueError as error:
        raise EvaluationError(f"run {run.id}: its date {run.date!r} is not in ISO 8601, so it has no time.") from error
    return int((start if start.tzinfo else start.replace(tzinfo=UTC)).timestamp() * 1000)


def _artifacts_beside(uri: str) -> str | None:
    """``artifacts`` in the folder of a SQLite file; MLflow's own default is ``mlruns`` of the working directory."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE).partition("?")[0]).resolve().parent / "artifacts").as_uri()


def _params(run: RunResult) -> dict[str, str]:
    named = {
        "candidates": run.candidates,
        "scenario": run.scenario,
        "device": run.machine.device,
        "devices": run.machine.count,
        "protocol": run.protocol,
        "command": run.command,
    }
    named |= {f"candidate.{task}": digest for task, digest in run.digests.items()}
    named |= {f"version.{name}": version for name, version in run.machine.versions.items()}
    named |= {f"setting.{name}": value for name, value in run.settings.items()}
    named |= {f"baseline.{n}": m.baseline for n, m in zip(model_names(run.models), run.models, strict=True)}
    return {_key(name): str(value) for name, value in named.items()}


def _metrics(run: RunResult, scored: Score) -> dict[str, float]:
    values = {"C": scored.C, "Cov": scored.Cov, "noise": scored.noise}
    intervals: dict[str, Interval | None] = {"score": scored.score, "S": scored.S, "S_passed": scored.S_passed}
    intervals |= {f"S.{c.category}": c.S for c in scored.categories}
    for m in scored.models:
        values |= {f"C.{m.model}": m.C, f"passed.{m.model}": float(m.passed)}
        intervals |= {f"speed.{m.model}": m.speed, f"thru.{m.model}": m.thru, f"lat.{m.model}": m.lat}
    for name, i in intervals.items():
        if i is not None:
            values |= {name: i.value, f"{name}.low": i.low, f"{name}.high": i.high}
    return {_key(name): value for name, value in values.items()}


def _log_values(client: MlflowClient, run_id: str, params: dict[str, str], metrics: dict[str, float]) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    rows: list[Any] = [Param(k, v) for k, v in params.items()]
    rows += [Metric(k, v, now, 0) for k, v in metrics.items()]
    for i in range(0, len(rows), BATCH):
        batch = rows[i : i + BATCH]
        client.log_batch(
            run_id,
            params=[r for r in batch if isinstance(r, Param)],
            metrics=[r for r in batch if isinstance(r, Metric)],
        )


def _files(run: RunResult, folder: Path) -> list[Path]:
    logs = sorted({arm.log for m in run.models for arm in m.arms.values() if arm.log})
    return [file for name in (REPORT, *logs) if (file := folder / name).is_file()]


def _row(data: Any) -> HistoryRow:
    """The line of a run's params, tags and metrics (``mlflow.entities.RunData``)."""
    params, metrics = data.params, data.metrics
    prefix = "candidate."
    return HistoryRow(
        **{tag: data.tags[f"fastkernels.{tag}"] for tag in TAGS},
        **{name: params[name] for name in ("scenario", "candidates", "device")},
        digests={name.removeprefix(prefix): d for name, d in params.items() if name.startswith(prefix)},
        versions={name: v for name in LIBRARIES if (v := params.get(f"version.{name}")) is not None},
        score=Interval(value=metrics["score"], low=metrics["score.low"], high=metrics["score.high"]),
        **{name: metrics[name] for name in ("S", "C", "Cov", "noise")},
    )


def _key(name: str) -> str:
    """A name that MLflow takes as a key: no slashes, since keys are paths to it."""
    return re.sub(r"[^\w.\- ]", "_", name)[:250]
