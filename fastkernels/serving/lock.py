"""A lock of a candidates' folder: the hash of every file in it, to be required where it is served."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from fastkernels.errors import FastkernelsError, ServingError
from fastkernels.evaluation.whole_file import whole_file
from fastkernels.runtime.load import shipped_folder

NAME = "fastkernels.lock"
BYTECODE = "__pycache__"


def lock(folder: str | Path, file: str | Path | None = None) -> Path:
    """Writes ``fastkernels.lock`` into ``folder``, or to ``file``: the SHA-256 of each file below it, by path.

    Raises:
        ServingError: no such folder, or nothing in it.
    """
    root = folder_of(folder)
    content = content_of(root)
    if not content:
        raise ServingError(f"{root}: no files to lock. Give a folder of candidates.")
    target = Path(file) if file is not None else root / NAME
    with whole_file(target) as path:
        path.write_text(json.dumps({"version": 1, "sha256": content}, indent=1) + "\n")
    return target


def check(folder: str | Path, file: Path) -> None:
    """Compares the files below ``folder`` with those of the lock, byte for byte. From then on this process takes no
    bytecode that lies beside a source: it is not in the lock, and Python would run it in the source's place.

    Raises:
        ServingError: a file has changed, is missing, or is not in the lock; or there is no lock.
    """
    root = folder_of(folder)
    try:
        locked = json.loads(file.read_text())["sha256"]
        if not isinstance(locked, dict):
            raise ValueError("sha256 is not a mapping")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServingError(
            f"{file}: no lock can be read from it ({error}). Write one: fastkernels lock {root}"
        ) from None
    present = content_of(root)
    wrong = [f"{name} is not in the lock" for name in sorted(present.keys() - locked.keys())]
    wrong += [f"{name} is missing" for name in sorted(locked.keys() - present.keys())]
    wrong += [f"{name} has changed" for name in sorted(present.keys() & locked.keys()) if present[name] != locked[name]]
    if wrong:
        raise ServingError(
            f"{root}: {'; '.join(wrong[:5])}{f'; and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. "
            f"Nothing of it was loaded. If that is meant: fastkernels lock {root}"
        )
    if sys.pycache_prefix is None:
        sys.pycache_prefix = tempfile.mkdtemp(prefix="fastkernels-bytecode-")


def folder_of(candidates: str | Path) -> Path:
    """The folder that an operator's word names: a path, or ``shipped``.

    Raises:
        ServingError: there is no such folder.
    """
    try:
        root = shipped_folder() if candidates == "shipped" else Path(candidates).expanduser()
    except FastkernelsError as error:
        raise ServingError(str(error)) from error
    if not root.is_dir():
        raise ServingError(f"candidates: {root} is not a folder. Give one with L1/*.py .. L4/*.py in it.")
    return root.resolve()


def content_of(root: Path) -> dict[str, str]:
    """SHA-256 of each file below ``root``, by its path there; without Python's bytecode, and without the lock itself.

    Raises:
        ServingError: a folder in it is a link, so that its files are not below ``root``.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if BYTECODE in name.parts or name == Path(NAME):
            continue
        if path.is_symlink() and path.is_dir():
            raise ServingError(f"{path} is a link to a folder: no lock would hold its files. Put them in its place.")
        if path.is_file():
            found[name.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
