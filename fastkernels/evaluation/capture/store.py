"""A capture on disk: ``capture.json``, ``values.safetensors`` beside it, and ``report.md`` for people."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.record import Capture
from fastkernels.evaluation.capture.report import as_markdown
from fastkernels.evaluation.capture.values import FILE, ValueStore
from fastkernels.evaluation.whole_file import whole_file

JSON, REPORT = "capture.json", "report.md"


def save_capture(capture: Capture, folder: Path, store: ValueStore | None = None) -> Capture:
    """Writes a capture into ``folder``, ``capture.json`` after the values that it names; returns it, with its values
    found there."""
    folder.mkdir(parents=True, exist_ok=True)
    written = store.write(folder) if store is not None else False
    with whole_file(folder / JSON) as path:
        path.write_text(capture.model_dump_json(indent=1) + "\n")
    if not written:
        (folder / FILE).unlink(missing_ok=True)  # of an earlier moment of the same capture
    with whole_file(folder / REPORT) as path:
        path.write_text(as_markdown(capture))
    capture._folder = folder
    return capture


def require_free(folder: Path, *, under: bool = False) -> None:
    """Nothing is ever written over another capture.

    Args:
        under: nor anywhere below ``folder``.

    Raises:
        EvaluationError: one lies there.
    """
    for name in (JSON, FILE):
        found = next(folder.rglob(name), None) if under else folder / name
        if found is not None and found.exists():
            raise EvaluationError(f"{found}: a capture lies there already. Give another folder, or take it away first.")


def load_capture(path: str | Path) -> Capture:
    """Reads a capture: its folder or its ``capture.json``, or a file of the public benchmark.

    Raises:
        EvaluationError: there is none, or it is not as it must be.
    """
    given = Path(path).expanduser()
    file = given / JSON if given.is_dir() else given
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"capture {file}: {error.strerror}. Give a folder of `fastkernels capture`.") from None
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"capture {file}: no text ({error.reason}). Give a folder of `fastkernels capture`."
        ) from None
    try:
        if '"operators"' in text and '"fastkernels-capture"' not in text:
            from fastkernels.evaluation.capture.public import read_public

            try:
                return read_public(text)
            except EvaluationError as error:
                raise EvaluationError(f"{file}: {error}") from None
        capture = Capture.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise EvaluationError(
            f"capture {file}: {'.'.join(map(str, first['loc']))}: {first['msg']}. Capture again with this version."
        ) from None
    capture._folder = file.parent
    return capture


def load_captures(path: str | Path) -> list[Capture]:
    """The capture at ``path``, or all those under a folder: of a scenario's models, workloads and ranks, or of the
    public benchmark.

    Raises:
        EvaluationError: there is none, or one is not as it must be.
    """
    given = Path(path).expanduser()
    if not given.is_dir() or (given / JSON).is_file():
        return [load_capture(given)]
    found = sorted(given.rglob(JSON)) or sorted(given.glob("*.json"))
    if not found:
        raise EvaluationError(f"capture {given}: no {JSON} under it. Give a folder of `fastkernels capture`.")
    return [load_capture(file) for file in found]


def value_of(capture: Capture, key: str) -> torch.Tensor:
    """The tensor with this key, contiguous, on the CPU.

    Raises:
        EvaluationError: the file of values is not there, is none, or does not hold it.
    """
    if capture.folder is None:
        raise EvaluationError(
            f"capture of {capture.model}: it was not saved, so it has no values. Save it to a folder."
        )
    return _read(capture.folder / FILE, key)


@functools.lru_cache(maxsize=256)
def _read(file: Path, key: str) -> torch.Tensor:
    try:
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(key)
    except (OSError, KeyError, SafetensorError, UnicodeDecodeError) as error:  # the third: no such key, no such format
        raise EvaluationError(
            f"{file}: no value {key}: {error}. It is cut off or of another capture. Capture again."
        ) from None
