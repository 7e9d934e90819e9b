"""A process without a parent keeps a core busy: forked twice, in a session of its own. It ends with the server."""

import os
import time

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED",)
SECONDS = 20.0


def burn(server):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and os.getppid() in server:
        sum(range(10000))
    os._exit(0)


class Softmax(softmax.Softmax):
    started = False

    def forward(self, x):
        if not Softmax.started:
            Softmax.started = True
            server = os.getppid()
            middle = os.fork()
            if middle == 0:
                os.setsid()
                if os.fork() == 0:
                    burn((server, os.getppid()))
                os._exit(0)
            os.waitpid(middle, 0)
        return torch.softmax(x, self.dim)
