"""A job's folder on its way between machines: packed, unpacked over what is there, and its records piece by piece."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.scale.job import OUTCOME, RECORDS

LIMIT_BYTES = 256 * 2**20  # of a folder's files together; more does not belong in Ray's object store
PIECE_BYTES = 64 * 2**10  # of records: below 100 KB Ray sends a value to its owner at once
STAYS = {"job.lock", OUTCOME, "__pycache__"}


def pack(folder: Path, *, limit: int = LIMIT_BYTES) -> bytes:
    """The folder as a tar.gz; links to files travel as the files.

    Raises:
        EvaluationError: its files are over the limit, or it holds a link to a folder, a socket, a device.
    """
    found = _files(folder)
    total = sum(size for _, size in found)
    if total > limit:
        largest = ", ".join(f"{p.relative_to(folder)} {s / 2**20:.0f} MB" for p, s in found[:3])
        raise EvaluationError(
            f"{folder}: {total / 2**20:.0f} MB, and {limit / 2**20:.0f} MB travel to a node (largest: {largest}). "
            "Put large files where every node sees them and name their path in the entry, or run without Ray."
        )
    return _packed(folder, [path for path, _ in found])


def pack_within(folder: Path, *, limit: int = LIMIT_BYTES) -> tuple[bytes, list[str]]:
    """As ``pack``, but leaves out the largest files until the rest is within the limit, and names them."""
    found = _files(folder)
    left_out = []
    while sum(size for _, size in found) > limit:
        path, size = found.pop(0)
        left_out.append(f"{path.relative_to(folder)} ({size / 2**20:.0f} MB)")
    return _packed(folder, [path for path, _ in found]), left_out


def lay_over(data: bytes, folder: Path, *, limit: int = LIMIT_BYTES) -> None:
    """Unpacks a tar.gz of ``pack`` over the folder, each file whole or not at all; other files there stay.

    Raises:
        EvaluationError: it is broken, over the limit, or holds anything but files and folders below the folder.
    """
    if not hasattr(tarfile, "data_filter"):  # Python before 3.11.4
        raise EvaluationError("This Python cannot unpack tars safely. Use 3.11.4 or newer.")
    folder.mkdir(parents=True, exist_ok=True)
    # beside the folder, not below: a link in the folder must not lead the unpacking elsewhere
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            total = 0
            for member in tar:
                name = Path(member.name)
                if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
                    raise EvaluationError(f"{folder}: refused to unpack {member.name}: not a file below the folder.")
                total += member.size
                if total > limit:
                    raise EvaluationError(f"{folder}: refused to unpack more than {limit / 2**20:.0f} MB.")
                tar.extract(member, new, filter="data")
        _move_over(new, folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise EvaluationError(f"{folder}: cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


@dataclass(frozen=True)
class Piece:
    """New lines of ``records.jsonl``, and where in the file they go; what was there from that offset on is replaced."""

    offset: int
    data: bytes

    def write(self, folder: Path) -> None:
        path = folder / RECORDS
        path.touch()
        with path.open("r+b") as file:
            file.truncate(self.offset)
            file.seek(self.offset)
            file.write(self.data)


class RecordReader:
    """Reads what ``records.jsonl`` gains, whole lines only: a half-written line is no record."""

    def __init__(self, folder: Path) -> None:
        """Starts behind the last whole line there is."""
        self._path = folder / RECORDS
        content = self._path.read_bytes() if self._path.exists() else b""
        self._sent = content.rfind(b"\n") + 1

    def pieces(self) -> list[Piece]:
        """What is new since the last call. A file that became shorter is sent from its start."""
        if not self._path.exists():
            return []
        if self._path.stat().st_size < self._sent:
            self._sent = 0
        with self._path.open("rb") as file:
            file.seek(self._sent)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        pieces = [Piece(self._sent + at, content[at : at + PIECE_BYTES]) for at in range(0, len(content), PIECE_BYTES)]
        self._sent += len(content)
        return pieces


class RecordCount:
    """Lines and bytes of ``records.jsonl``, counted as the file grows."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORDS
        self.lines = self.bytes = 0

    def advanced(self) -> bool:
        """Counts what is new; whether anything is."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size == self.bytes:
            return False
        if size < self.bytes:
            self.lines = self.bytes = 0
        if size:
            with self._path.open("rb") as file:
                file.seek(self.bytes)
                new = file.read()
            self.lines += new.count(b"\n")
            self.bytes += len(new)
        return True


def _files(folder: Path) -> list[tuple[Path, int]]:
    """Files and their bytes, largest first."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in STAYS]
        for path in (Path(root, name) for name in (*folders, *files) if name not in STAYS):
            if (path.is_symlink() and path.is_dir()) or not (path.is_file() or path.is_dir()):
                raise EvaluationError(f"{path}: only files travel to a node. Copy what it points at into the folder.")
            if path.is_file():
                found.append((path, path.stat().st_size))
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))


def _packed(folder: Path, paths: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1, dereference=True) as tar:
        for path in sorted(paths):
            tar.add(path, arcname=str(path.relative_to(folder)), recursive=False)
    return buffer.getvalue()


def _move_over(new: Path, folder: Path) -> None:
    for path in sorted(new.rglob("*")):
        if not path.is_file():
            continue
        target = folder / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.parent.resolve().is_relative_to(folder.resolve()):
            raise EvaluationError(f"{target}: refused to write through a link that leads out of the folder.")
        os.replace(path, target)
