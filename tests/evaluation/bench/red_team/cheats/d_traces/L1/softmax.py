"""A profile function that sees every call of the harness and can tell timed ones from others."""

import sys

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("TAMPERED", "TIMED_WRONG")
state = {"timed": False}


def watch(frame, event, argument):
    name = frame.f_code.co_name
    if event in ("call", "return") and ("timed" in name or "batch" in name):
        state["timed"] = event == "call"


sys.setprofile(watch)


class Softmax(softmax.Softmax):
    def forward(self, x):
        return torch.empty_like(x) if state["timed"] else torch.softmax(x, self.dim)
