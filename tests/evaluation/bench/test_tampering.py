"""What a candidate changes about its process or its surroundings is seen, and scores nothing."""

from __future__ import annotations

import pytest

from tests.evaluation.bench.conftest import codes

IN_FORWARD = """
class ReLU(nn.Module):
    def forward(self, x):
        {body}
        return torch.relu(x)
"""
AT_IMPORT = """
{body}
class ReLU(nn.Module):
    def forward(self, x):
        return torch.relu(x)
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (AT_IMPORT.format(body="import time\ntime.perf_counter = lambda: 0.0"), "time.perf_counter was replaced"),
        (IN_FORWARD.format(body="torch.set_float32_matmul_precision('medium')"), "matmul precision"),
        (AT_IMPORT.format(body="torch.set_num_threads(7)"), "number of threads"),
        (
            AT_IMPORT.format(body="import sys, types\nsys.modules['torch.cuda'] = types.ModuleType('torch.cuda')"),
            "sys.modules",
        ),
        (
            AT_IMPORT.format(
                body="from fastkernels.tasks.L1.elementwise import *\nimport fastkernels.evaluation.bench.poison as p\n"
                "p._perturb.__code__ = (lambda byte: None).__code__"
            ),
            "code of",
        ),
        (IN_FORWARD.format(body="import gc; gc.get_objects()"), "gc.get_objects"),
        (IN_FORWARD.format(body="import sys; sys._getframe()"), "sys._getframe"),
        pytest.param(
            AT_IMPORT.format(
                body="import contextlib, os\nwith contextlib.suppress(OSError):\n"
                "    os.rename(torch.__file__ + '.none', torch.__file__ + '.other')"
            ),
            "os.rename of",
            id="a package's file",
        ),
        (IN_FORWARD.format(body="import os; os.setpriority(0, 0, 5)"), "priority"),
        (
            AT_IMPORT.format(
                body="import contextlib, os\nwith contextlib.suppress(OSError):\n"
                "    open(os.path.expanduser('~/.cache/torch_extensions/of_nobody/main.so'), 'w')"
            ),
            "wrote to",
        ),
        (
            IN_FORWARD.format(body="import ctypes; getattr(ctypes.CDLL(None), 'nvmlDeviceSetGpuLockedClocks', None)"),
            "nvmlDeviceSet",
        ),
        (
            IN_FORWARD.format(body="import subprocess; subprocess.Popen(['sleep', '30'])"),
            "sleep",
        ),
        (
            IN_FORWARD.format(
                body="import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
            ),
            "threads that outlive the call",
        ),
        (IN_FORWARD.format(body="import socket; socket.socket().connect_ex(('127.0.0.1', 9))"), "socket.connect"),
    ],
)
def test_what_was_changed_is_told(benched, code, said):
    result = benched(code)
    assert "TAMPERED" in codes(result), result.failures
    assert said in " ".join(str(f) for f in result.failures)
    assert (result.status, result.score) == ("REWARD_HACK", 0)


@pytest.mark.slow
def test_a_process_that_got_away_is_ended_and_told(benched):
    lines = ("import os, time", "if os.fork() == 0:", "    if os.fork() == 0: time.sleep(60)", "    os._exit(0)")
    body = "\n        ".join(lines)
    result = benched(IN_FORWARD.format(body=body))
    assert "TAMPERED" in codes(result), result.failures


@pytest.mark.slow
def test_the_run_goes_on_after_a_candidate_ended_the_fork_server(benched):
    result = benched(IN_FORWARD.format(body="import os, signal; os.kill(os.getppid(), signal.SIGKILL)"))
    assert result.status != "PASSED"
    assert benched(IN_FORWARD.format(body="pass")).status == "PASSED"


@pytest.mark.slow
def test_flags_that_are_put_back_are_no_tampering(benched):
    body = "before = torch.get_num_threads(); torch.set_num_threads(1); torch.set_num_threads(before)"
    assert benched(IN_FORWARD.format(body=body)).status == "PASSED"
