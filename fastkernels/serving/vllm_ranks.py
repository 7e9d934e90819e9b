"""Before a vLLM engine plans its memory: each rank must stand as the operator asked, and all of them alike."""

from __future__ import annotations

from typing import Any

from fastkernels.errors import ServingError
from fastkernels.serving.settings import Settings
from fastkernels.serving.worker_report import WorkerReport


def require_ranks(executor: Any, settings: Settings) -> None:
    """Asks every worker of an engine for its report.

    Raises:
        ServingError: a worker knows nothing of us, has not done what was asked, or holds other candidates than rank 0.
            With ``on_error=serve``, only the first.
    """
    try:
        answers = executor.collective_rpc("fastkernels_report")
    except RuntimeError as error:  # a worker without the verb: NotImplementedError there, told as RuntimeError here
        raise ServingError(
            f"a worker of this engine does not answer for its patch ({error}). Install fastkernels where workers run, "
            f"name it in VLLM_PLUGINS if that is set, and give workers the FASTKERNELS_ variables (with Ray: "
            f"VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY=FASTKERNELS_)."
        ) from error
    reports = [WorkerReport.model_validate_json(answer) for answer in answers]
    if settings.on_error == "serve":
        return
    wanted = "watching" if settings.candidates is None else "patched"
    for report in reports:
        if report.state != wanted:
            raise ServingError(f"{report.summary}. Asked for: {wanted}. The engine does not start.")
        if _content(report) != _content(reports[0]):
            raise ServingError(
                f"{report.summary}: its candidates are not those of rank {reports[0].rank}. The engine does not start. "
                "Let no file change while it does, and give each node the same folder."
            )


def _content(report: WorkerReport) -> list[tuple[str, str]]:
    return [(c.task, c.digest) for c in report.patch.candidates] if report.patch is not None else []
