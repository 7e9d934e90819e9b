"""A candidate that dies or waits for ever is a diagnosis with a line, and the run goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fastkernels import conflicts

BAD = Path(__file__).parent / "candidates" / "bad"


def line_of(name, words):
    return next(n for n, line in enumerate((BAD / f"{name}.py").read_text().splitlines(), 1) if words in line)


def test_a_crash_and_a_hang_end_their_stage_only(tmp_path):
    for name in ("CRASH", "HANG"):
        shutil.copy(BAD / f"{name}.py", tmp_path)
    shutil.copy(BAD.parent / "clean" / "torch_rms_norm.py", tmp_path / "zz_last.py")
    report = conflicts(tmp_path, stages=["eager", "mutation"], timeout=8.0)
    crash, hang, last = (report.of(name) for name in report.candidates())
    assert (
        crash[1].code == "CRASH"
        and "SIGSEGV" in crash[1].evidence.text
        and crash[1].evidence.line == line_of("CRASH", "string_at")
    )
    assert hang[1].code == "HANG" and hang[1].evidence.line == line_of("HANG", "wait()")
    assert crash[2].status == hang[2].status == "skip" and "eager failed" in crash[2].reason
    assert [c.status for c in last] == ["pass"] * 3


def test_no_process_and_no_folder_is_left_behind(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    shutil.copy(BAD / "HANG.py", tmp_path)
    conflicts(tmp_path / "HANG.py", stages=["eager"], timeout=3.0)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    alive = [Path(f"/proc/{p}/cmdline").read_text() for p in children.read_text().split()] if children.exists() else []
    assert not [c for c in alive if "conflicts.worker" in c]
    assert not list(scratch.glob("fastkernels-conflicts-*"))
