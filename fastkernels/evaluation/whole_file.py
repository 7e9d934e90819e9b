"""Files that are there whole or not at all, whenever their writer is killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``file`` at the end of the block, and is gone where it raises.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "result.json"
    >>> with whole_file(file) as path:
    ...     _ = path.write_text("{}")
    ...     file.exists()
    False
    >>> file.read_text()
    '{}'
    """
    written = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield written
        os.replace(written, file)
    finally:
        written.unlink(missing_ok=True)
