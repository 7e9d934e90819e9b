"""Before a vLLM engine plans its memory: each rank must stand as the operator asked, and all of them alike."""

from __future__ import annotations

import logging
from typing import Any

from fastkernels.errors import ServingError
from fastkernels.serving.settings import Settings
from fastkernels.serving.worker_report import WorkerReport

LOGGER = logging.getLogger("fastkernels")


def require_ranks(executor: Any, settings: Settings) -> None:
    """Asks every worker of an engine for its report.

    Raises:
        ServingError: a worker knows nothing of us, has not done what was asked, or holds other candidates than rank 0,
            and ``on_error`` is ``stop``. With ``serve`` the same is an error in the log.
    """
    wrong = _wrong(executor, "watching" if settings.candidates is None else "patched")
    if wrong and settings.on_error == "stop":
        raise ServingError(
            f"{wrong}\nThe engine does not start. FASTKERNELS_ON_ERROR=serve would start it as its workers are."
        )
    if wrong:
        LOGGER.error("vLLM: %s", wrong)
        LOGGER.error("fastkernels_patched{engine=vllm} 0")


def _wrong(executor: Any, wanted: str) -> str:
    """What is not as it was asked for, of the first worker that has it; empty where all is."""
    try:
        answers = executor.collective_rpc("fastkernels_report")
    except RuntimeError as error:  # a worker without the verb: NotImplementedError there, told as RuntimeError here
        return (
            f"a worker of this engine does not answer for its patch ({error}). Install fastkernels where workers run, "
            f"name it in VLLM_PLUGINS if that is set, and give workers the FASTKERNELS_ variables (with Ray: "
            f"VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY=FASTKERNELS_)."
        )
    reports = [WorkerReport.model_validate_json(answer) for answer in answers]
    for report in reports:
        if report.state != wanted:
            return f"{report.summary}. Asked for: {wanted}."
        if _content(report) != _content(reports[0]):
            return (
                f"{report.summary}: its candidates are not those of rank {reports[0].rank}. Let no file change while "
                "the engine starts, and give each node the same folder."
            )
    return ""


def _content(report: WorkerReport) -> list[tuple[str, str]]:
    return [(c.task, c.digest) for c in report.patch.candidates] if report.patch is not None else []
