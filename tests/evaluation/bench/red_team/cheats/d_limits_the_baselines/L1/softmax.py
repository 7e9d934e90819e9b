"""Allows the processes of the other implementations one second of CPU time: the strongest baseline dies of it."""

import contextlib
import os
import resource
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
        if Softmax.calls in (60, 200, 1000, 3000):
            for pid in siblings():
                with contextlib.suppress(OSError, ValueError):
                    resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))
        return torch.softmax(x, self.dim)
