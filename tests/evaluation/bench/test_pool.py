"""Each process has one part: what is timed was never watched, and a baseline's doings are not the candidate's."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastkernels.evaluation.bench import process
from fastkernels.evaluation.bench.bench import bench
from fastkernels.evaluation.bench.contestants import Contestants
from fastkernels.evaluation.bench.pool import Options, Pool
from fastkernels.evaluation.bench.site import Memory, Site
from fastkernels.evaluation.bench.source import Source
from fastkernels.tasks import get_task

CPU = torch.device("cpu")
TASK = get_task("relu")
SAYS_WHO_LOOKS = """
import os, sys
class ReLU(nn.Module):
    calls = 0
    def forward(self, x):
        ReLU.calls += 1
        if sys.getprofile() is not None or torch._C._len_torch_dispatch_stack() > 0:
            print("watched", os.getpid(), file=open({file!r}, "a"))
        if ReLU.calls == {many}:
            print("timed", os.getpid(), file=open({file!r}, "a"))
        return torch.relu(x)
"""
MANY = 300  # calls, as only timing makes
LEAVES_A_PROCESS = """
import subprocess
class ReLU(nn.Module):
    def forward(self, x):
        ReLU.left = subprocess.Popen(["sleep", "60"])
        return torch.relu(x)
"""

FAILS_ON_THE_DEVICE = """
import torch
class ReLU(torch.nn.Module):
    def forward(self, x):
        if x.dim() == 2:
            torch._assert_async(torch.zeros((), device=x.device))
        return torch.relu(x)
"""
WAITS = """
import torch
class ReLU(torch.nn.Module):
    def forward(self, x):
        torch.cuda.current_stream().synchronize()
        return torch.relu(x)
"""


@pytest.fixture
def pool(server, written) -> Iterator[Pool]:
    with contextlib.ExitStack() as stack:
        honest = written("class ReLU(nn.Module):\n    def forward(self, x): return torch.relu(x)\n")
        yield Pool(honest, TASK, server, Options(device=CPU, dtypes=(torch.float32,)), stack)


def site(memory: Memory) -> Site:
    return Site(TASK, next(iter(TASK.cases())), torch.float32, memory, 7)


def baseline(folder: Path, code: str) -> Source:
    file = folder / "baseline.py"
    file.write_text("import os, torch\nfrom torch import nn\n" + code)
    return Source(name="baseline", task="relu", file=str(file), cls="ReLU")


def test_what_is_timed_was_never_watched(benched, tmp_path):
    benched(SAYS_WHO_LOOKS.format(file=str(tmp_path / "told"), many=MANY))
    told = [line.split() for line in (tmp_path / "told").read_text().splitlines()]
    watched, timed = ({pid for what, pid in told if what == wanted} for wanted in ("watched", "timed"))
    assert watched and timed
    assert not watched & timed


def test_a_baseline_that_cannot_be_imported_is_tried_once_for_all_cases(pool, memory, tmp_path):
    tried = tmp_path / "tried"
    source = baseline(tmp_path, f"open({str(tried)!r}, 'a').write('x')\nraise ImportError('built for another torch')\n")
    notes: list[str] = []
    for _ in range(2):
        before = tried.read_text() if tried.exists() else ""
        assert Contestants(pool, site(memory), [source], notes).runners() == {}
    assert tried.read_text() == before
    assert len(notes) == 2 and all("built for another torch" in note for note in notes)


def test_what_a_baseline_leaves_behind_is_not_the_candidates(pool, memory, tmp_path):
    source = baseline(tmp_path, LEAVES_A_PROCESS)
    (runner,) = Contestants(pool, site(memory), [source], []).runners().values()
    (left,) = process.descendants(runner.pid)
    assert pool.outside() == []
    process.kill(runner.pid)
    assert process.ended(runner.pid)
    assert pool.strays() == []
    assert process.ended(left)


def test_a_candidate_and_the_baselines_share_no_compilers_cache(pool, tmp_path):
    code = "open({!r}, 'a').write(os.environ['TRITON_CACHE_DIR'] + ' ' + os.environ['TORCHINDUCTOR_CACHE_DIR'] + ' ')\n"
    source = baseline(tmp_path, code.format(str(tmp_path / "seen")) + "class ReLU(nn.Module): pass\n")
    with pytest.raises(Exception, match="IMPORT_ERROR"):  # it has no forward of the task's
        pool.runner(source, "candidate")
    with pytest.raises(Exception, match="IMPORT_ERROR"):
        pool.runner(source, "baseline")
    folders = (tmp_path / "seen").read_text().split()
    assert len(set(folders)) == 4
    assert not any(folder.startswith(str(Path.home())) for folder in folders)


NO_ROOM_BESIDE = """
class ReLU(nn.Module):
    def forward(self, x):
        if not open("/proc/" + open({file!r}).read() + "/statm").read().startswith("0 "):  # as one that has ended
            raise RuntimeError("out of memory")
        return torch.relu(x)
"""


def test_a_baseline_for_which_the_candidate_leaves_no_room_runs_without_it(pool, memory, tmp_path):
    candidate = pool.runner(pool.source, "candidate")
    (tmp_path / "pid").write_text(str(candidate.pid))
    source = baseline(tmp_path, NO_ROOM_BESIDE.format(file=str(tmp_path / "pid")))
    notes: list[str] = []
    assert list(Contestants(pool, site(memory), [source], notes).runners()) == ["baseline"], notes
    assert not candidate.alive
    assert pool.runner(pool.source, "candidate").alive


@pytest.mark.gpu
def test_shared_memory_of_a_device_is_given_back_without_a_warning():
    code = (
        "import torch; from fastkernels.evaluation.bench.site import Memory\n"
        "memory = Memory(torch.device('cuda', 0))\n"
        "for size in (1 << 20, 1 << 24): memory.arena('inputs', size).handle()\n"  # for children that are killed
        "memory.close()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Producer process" not in ran.stderr


@pytest.mark.gpu
def test_a_device_error_ends_its_process_and_the_next_case_has_another(tmp_path):
    (tmp_path / "L1").mkdir()
    (tmp_path / "L1" / "relu.py").write_text(FAILS_ON_THE_DEVICE)
    first, second = bench(tmp_path, device="cuda", dtypes=["float32"], cases=["rows", "batch"], rounds=2).cases
    failed, passed = sorted((first, second), key=lambda case: case.gate)
    assert "CALL_ERROR" in {f.code for f in failed.failures}
    assert passed.gate, passed.failures


@pytest.mark.gpu
def test_what_cannot_be_captured_is_timed_eagerly_in_every_case(tmp_path):
    (tmp_path / "L1").mkdir()
    (tmp_path / "L1" / "relu.py").write_text(WAITS)
    for case in bench(tmp_path, device="cuda", dtypes=["float32"], cases=["rows", "batch"], rounds=2).cases:
        assert case.gate, case.failures
        assert set(case.timing) == {"eager"}


def test_memory_that_is_outgrown_grows_by_more_than_is_asked(memory):
    first = memory.arena("growing", 1 << 20)
    second = memory.arena("growing", first.size + 1)
    assert second.size >= 1.5 * first.size
    assert memory.arena("growing", 0) is second
