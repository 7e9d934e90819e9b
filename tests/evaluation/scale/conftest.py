"""Small scripts as jobs, and what runs of them left behind."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastkernels.evaluation.scale.job import Job

MakeJob = Callable[..., Job]

# a job that does five things, one record each, and goes on where its records end, as an evaluation does
COUNT = """
    from pathlib import Path
    records = Path(FOLDER, "records.jsonl")
    done = records.read_bytes().count(b"\\n") if records.exists() else 0
    with records.open("r+b" if records.exists() else "wb") as file:
        file.truncate(sum(map(len, records.read_bytes().splitlines(True)[:done])))
        file.seek(0, 2)
        for i in range(done, 5):
            file.write(b'{"i": %d, "try": %d}\\n' % (i, done)); file.flush()
            AFTER
    Path(FOLDER, "model.json").write_text("{}")
"""


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A job that runs a script; FOLDER in it is the job's folder."""

    def make(name: str, script: str, **options: object) -> Job:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        code = "import os, sys, time, signal; FOLDER = sys.argv[1]\n" + textwrap.dedent(script)
        return Job(name=name, folder=folder, command=(sys.executable, "-c", code, "{folder}"), **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def counting_job(make_job: MakeJob) -> MakeJob:
    def make(name: str, after: str, **options: object) -> Job:
        return make_job(name, COUNT.replace("AFTER", after), **options)

    return make


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited for nothing"
        time.sleep(0.05)


def descendants() -> set[int]:
    """Processes below this one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found - {os.getpid()}


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    before = descendants()
    yield
    wait_until(lambda: not {pid for pid in descendants() - before if is_alive(pid)}, seconds=10)
