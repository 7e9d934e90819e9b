"""``python -m fastkernels.evaluation.conflicts.rerun FILE TASK CLASS DEVICE``: one call of a candidate, in a process
that tells, as JSON on its last line, which files it loaded as code or read as bytes, and from which line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any


def main() -> None:
    """Loads the candidate, calls it once, and says what was loaded."""
    loaded: dict[str, tuple[str, int]] = {}
    watching = [True]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching[0] or event not in ("open", "ctypes.dlopen", "import"):
            return
        name = arguments[0] if event != "import" else arguments[1]
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            return
        if isinstance(name, (str, bytes, os.PathLike)) and os.fspath(name):
            where = _line(folder)
            if where is not None:
                loaded.setdefault(os.path.abspath(os.fsdecode(name)), where)

    file, task, cls, device = sys.argv[1:]
    folder = os.path.dirname(file)
    import torch

    from fastkernels.evaluation.conflicts.subject import Subject
    from fastkernels.evaluation.conflicts.target import Target

    sys.addaudithook(audit)
    candidate = Target(file=Path(file), task=task, cls=cls).load()
    subject = Subject(candidate=candidate, device=torch.device(device))
    call = next(iter(subject.calls(rows=[8])))
    with torch.no_grad():
        subject.build(call)(*subject.draw(call))
    watching[0] = False
    sys.stdout.write("\n" + json.dumps(loaded) + "\n")
    sys.stdout.flush()
    os._exit(0)  # nothing that the candidate left behind may run at exit


def _line(folder: str) -> tuple[str, int] | None:
    """The candidate's line that loads, if no library other than Python's own and torch stands in between."""
    import torch

    passed = (os.path.dirname(torch.__file__), os.path.dirname(os.__file__), "<")
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(folder):
            return os.path.relpath(name, folder), frame.f_lineno
        if not name.startswith(passed) or "site-packages" in name.removeprefix(passed[0]):
            return None
        frame = frame.f_back
    return None


if __name__ == "__main__":
    main()
