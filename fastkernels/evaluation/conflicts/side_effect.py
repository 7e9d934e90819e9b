"""What a call writes to the outside: standard streams, log records, warnings, the file system, the environment.

What a loader or a compiler leaves behind while it builds for the candidate is not the candidate's message."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from fastkernels.evaluation.conflicts.observe import is_user_file

# Audit events of the interpreter that change what others can see.
CHANGES = frozenset(
    {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.putenv"}
    | {"os.unsetenv"}
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
BUILDERS = ("importlib", "cpp_extension.py", "/triton/", "/_inductor/", "/ctypes/")


def side_effect(function: Callable[[], Any]) -> str | None:
    """What ``function`` writes to the outside, or None."""
    changed: list[str] = []
    active = [False]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if not active[0]:
            return
        writes = event == "open" and _opens_for_writing(*arguments[1:3])
        if (writes or event in CHANGES) and not _building(sys._getframe(1)):
            changed.append(f"opens {arguments[0]} for writing" if writes else f"{event} {arguments[0]!r}"[:200])

    sys.addaudithook(audit)
    try:
        with _streams() as written, _records() as logged, _warnings() as warned:
            active[0] = True
            function()
            active[0] = False
    finally:
        active[0] = False
    if written:
        return f"writes to a standard stream: {written[0][:200]!r}"
    if logged:
        return f"logs: {logged[0][:200]!r}"
    if warned:
        return f"warns: {warned[0][:200]!r}"
    return changed[0] if changed else None


def _opens_for_writing(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & WRITING)


def _building(frame: FrameType | None) -> bool:
    while frame is not None:
        if any(name in frame.f_code.co_filename for name in BUILDERS):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _streams() -> Iterator[list[str]]:
    """Collects what goes to the file descriptors of the standard streams."""
    written: list[str] = []
    with tempfile.TemporaryFile() as sink:
        saved = [(fd, os.dup(fd)) for fd in (1, 2)]
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        try:
            for fd, _ in saved:
                os.dup2(sink.fileno(), fd)
            yield written
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for fd, copy in saved:
                os.dup2(copy, fd)
                os.close(copy)
        sink.seek(0)
        text = sink.read().decode(errors="replace").strip()
        written += [text] if text else []


@contextlib.contextmanager
def _records() -> Iterator[list[str]]:
    """Collects log records of the candidate's own."""
    logged: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if is_user_file(record.pathname):
                logged.append(record.getMessage())

    handler = Collect()
    logging.getLogger().addHandler(handler)
    try:
        yield logged
    finally:
        logging.getLogger().removeHandler(handler)


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collects warnings that the candidate itself gives; those that torch gives about a call are not its message."""
    warned: list[str] = []

    def collect(message: Any, *_: Any, **__: Any) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename == warnings.__file__:
            frame = frame.f_back
        if frame is not None and is_user_file(frame.f_code.co_filename) and _calls_warn(frame):
            warned.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = collect
        yield warned


def _calls_warn(frame: FrameType) -> bool:
    """A warning from C++ has no frame of its own: it would be taken for the candidate's."""
    names = frame.f_code.co_names
    given = (warnings.warn, warnings.warn_explicit)
    return bool({"warn", "warn_explicit"} & set(names)) or any(frame.f_globals.get(n) in given for n in names)
