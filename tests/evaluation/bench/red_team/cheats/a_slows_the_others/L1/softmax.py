"""Gives the processes of the other implementations the lowest priority."""

import contextlib
import os
from pathlib import Path

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)


def siblings():
    """Other children of this bench's own server, and nobody else."""
    server = os.getppid()
    if b"evaluation.bench.fork_server" not in Path(f"/proc/{server}/cmdline").read_bytes():
        return
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == server and int(entry.name) != os.getpid():
            yield int(entry.name)


class Softmax(softmax.Softmax):
    calls = 0

    def forward(self, x):
        Softmax.calls += 1
        if Softmax.calls in (5, 60, 200, 1000, 3000, 9000):
            for pid in siblings():
                with contextlib.suppress(OSError, ValueError):
                    os.setpriority(os.PRIO_PROCESS, pid, 19)
        return torch.softmax(x, self.dim)
