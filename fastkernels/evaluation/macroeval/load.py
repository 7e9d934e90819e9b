"""Reads what an evaluation wrote."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import RunResult

RESULT = "result.json"


def load_run(path: str | Path) -> RunResult:
    """The run of a ``result.json``, or of the folder that holds it.

    Raises:
        EvaluationError: there is none, it cannot be read, or it is no result of ``fastkernels eval``.
    """
    given = Path(path).expanduser()
    file = given / RESULT if given.is_dir() else given
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        way_out = "An unfinished run has none yet: resume it with fastkernels eval." if given.is_dir() else ""
        raise EvaluationError(f"{file}: no such file. {way_out}".rstrip()) from error
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file} cannot be read: {error}.") from error
    try:
        return RunResult.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise EvaluationError(
            f"{file} is not a result of fastkernels eval: {where}: {first['msg']} ({error.error_count()} such errors). "
            "Give a result.json that eval wrote, or the run's folder."
        ) from error
