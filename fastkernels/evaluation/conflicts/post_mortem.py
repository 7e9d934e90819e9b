"""Why a stage's process died, from its exit status and the notes it left."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from fastkernels.evaluation.conflicts.observe import is_user_file
from fastkernels.evaluation.conflicts.report import Evidence, Finding

TAIL_CHARACTERS = 400


def post_mortem(folder: Path, *, status: int | None, limit: float) -> Finding:
    """A CRASH, or a HANG where ``status`` is None; with the line where the candidate stood, if that is known."""
    notes = (folder / "crash").read_text(errors="replace") if (folder / "crash").is_file() else ""
    log = (folder / "log").read_text(errors="replace") if (folder / "log").is_file() else ""
    frames = [(f, int(n)) for f, n in re.findall(r'File "([^"]+)", line (\d+)', notes) if is_user_file(f)]
    file, line = frames[0] if frames else (None, None)
    if status is None:
        text = f"no end within {limit:.0f} s"
    elif os.WIFSIGNALED(status):
        text = f"the process died of {signal.Signals(os.WTERMSIG(status)).name}"
    else:
        text = f"the process ended with exit status {os.waitstatus_to_exitcode(status)} and no result"
    tail = log.strip()[-TAIL_CHARACTERS:]
    evidence = Evidence(text=f"{text}; last output: {tail}" if tail else text, file=file, line=line)
    return Finding(code="HANG" if status is None else "CRASH", evidence=evidence)
