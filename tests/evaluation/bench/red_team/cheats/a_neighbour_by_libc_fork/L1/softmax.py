"""Helpers forked by the C library, of which Python tells nobody, keep both CPUs busy while their parent stands still;
they are gone when the harness looks for what is left."""

import ctypes
import os
import time
from pathlib import Path

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)
SECONDS = 2.0
libc = ctypes.CDLL(None)


def burn(parent):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(1e-4)
            continue
        for _ in range(100):
            sum(range(1000))
    os._exit(0)


class Softmax(softmax.Softmax):
    calls = 0

    def forward(self, x):
        Softmax.calls += 1
        if Softmax.calls in (300, 600):
            libc.signal(17, ctypes.c_void_p(1))  # SIGCHLD is ignored: no zombie stays
            parent = os.getpid()
            for _ in range(2):
                if libc.fork() == 0:
                    burn(parent)
        return torch.softmax(x, self.dim)
