"""Graph mode without a device: a child in this process, whose graphs are lists of steps that are walked on the CPU."""

from __future__ import annotations

import ctypes
import json
import os

import torch

from fastkernels.evaluation.bench.chain import Copy
from fastkernels.evaluation.bench.chained import Chained
from fastkernels.evaluation.bench.child import Harness
from fastkernels.evaluation.bench.graphed import Captured
from fastkernels.evaluation.bench.judged import Judged
from fastkernels.evaluation.bench.packed import unpack
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.site import Site
from fastkernels.evaluation.bench.timed import Bed
from fastkernels.tasks import get_task
from tests.evaluation.bench.conftest import CPU


class Walked(Chained):
    """A graph's nodes, one after the other, without a device: copies of bytes, and what a call recorded."""

    def _captured(self, function, slots):
        return [
            Captured(graph=lambda s=s: function(*s), arguments=s, outputs=function(*s))  # type: ignore[arg-type,misc]
            for s in slots
        ]

    def _run(self, steps):
        for step in steps:
            if isinstance(step, Copy):
                ctypes.memmove(step.target, step.source, step.count)
            else:
                step.graph()


class InProcess(Runner):
    """A child in this process: it takes the parent's orders, and ``capture`` makes its slots' graphs."""

    pid = os.getpid()
    seconds = 3600.0  # of an order: one process is all contestants, and runs in everybody's turn

    def __init__(self, capture, site):
        self.arenas, self.device, self.capture, self.harness = {}, CPU, capture, Harness()
        self.attach("parameters", site.memory.arena("parameters", 0))
        self.harness.parameters = site.parameters

    def order(self, verb, *, timeout=None, descriptors=(), **arguments):
        if verb == "attach":
            arguments["descriptors"] = [os.dup(d) for d in descriptors]
        if verb != "bind":
            return json.loads(json.dumps(getattr(self.harness, verb)(**arguments)))
        slots = [unpack(self.harness.arenas["inputs"].views(places)) for places in arguments["slots"]]
        self.harness.slots = slots
        self.harness.chained = Walked(self.capture(slots, self.harness._parameters()), [])

    def stop(self):
        pass


def recorded(work):
    """Captures calls, each with an output of its own; ``work(i, xs, outs)`` is what the graph of call i does."""

    def capture(slots, _):
        xs = [x for (x,) in slots]
        outs = [torch.full_like(x, torch.nan) for x in xs]
        return [
            Captured(graph=lambda i=i: work(i, xs, outs), arguments=s, outputs=outs[i])  # type: ignore[arg-type,misc]
            for i, s in enumerate(slots)
        ]

    return capture


def own(i, xs, outs):
    outs[i].copy_(torch.relu(xs[i]))


def in_process(memory, task, capture, slots, trusted=None, kind=InProcess):
    """A bed in graph mode, its contestants of ``kind``; ``capture(slots, parameters)`` makes the graphs of one."""
    site = Site(get_task(task), next(iter(get_task(task).cases())), torch.float32, memory, 7)
    made = {"suspect": capture} | ({} if trusted is None else {"trusted": trusted})
    runners = {name: kind(one, site) for name, one in made.items()}
    found = Bed(site, runners, suspect="suspect", judged=Judged(sharing=site.own_sharing(site.draws[0])), mode="graph")
    found.bind(slots)
    return found
