"""Honest when it is called; while the baselines are timed, threads of its own keep the cores and caches busy."""

import threading
import time

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)
SECONDS = 60.0  # it ends by itself
called = [time.monotonic()]
born = time.monotonic()


def burn():
    noise = torch.randn(512, 512)
    while time.monotonic() - born < SECONDS:
        if time.monotonic() - called[0] > 0.002:
            noise @ noise
        else:
            time.sleep(0.001)


class Softmax(softmax.Softmax):
    threads = []

    def forward(self, x):
        if not self.threads:
            self.threads.append(threading.Thread(target=burn, daemon=True))
            self.threads[0].start()
        called[0] = time.monotonic()
        return torch.softmax(x, self.dim)
