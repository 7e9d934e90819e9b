"""Runs a command, and lets nothing that it started outlive it or the process that asked. Standard library only.

A program of its own, ``python -I -S guard.py FOLDER COMMAND...``, with a pipe from its parent as stdin. A word in the
pipe asks for an end; it closes without one where the parent died of anything, kill -9 included. In both cases all that
the command started is killed, and in the second FOLDER, unless empty, is removed, since nobody will fetch it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36


def guard(folder: str, command: list[str]) -> int:
    """Runs the command until it ends or stdin has news; its return code, negative for a signal."""
    if sys.platform == "linux":  # orphans of the command become ours, so that they can be found
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        job = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201 - a program; this goes to the job's log
        return 127
    orphaned = False
    while job.poll() is None:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        if 0 in ready:
            orphaned = not os.read(0, 1)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    code = job.wait()
    _sweep()
    if orphaned and folder:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _sweep() -> None:
    """Kills and reaps whatever is left below this process, however it detached itself."""
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
        if parent == os.getpid():
            found.append(int(stat.parent.name))
    return found


def _end_with(code: int) -> NoReturn:
    """Ends as the command did: with its exit status, or of its signal."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command has written the core file
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    # in a second process: Ray kills the direct children of a worker that ends, and this has to outlive it for a moment
    inner = os.fork()
    if inner == 0:
        _end_with(guard(sys.argv[1], sys.argv[2:]))
    os.close(0)
    _end_with(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
