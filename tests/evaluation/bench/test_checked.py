"""Calls that were captured one by one are checked by what their graph brings them. Here a graph is a list of steps that
is walked on the CPU: parent, arenas, copies and the judging are the real ones."""

from __future__ import annotations

import ctypes
import json
import os

import pytest
import torch

from fastkernels.evaluation.bench.chain import Copy, interleaved
from fastkernels.evaluation.bench.chained import Chained
from fastkernels.evaluation.bench.child import Harness
from fastkernels.evaluation.bench.cudart import runtime
from fastkernels.evaluation.bench.graphed import Captured
from fastkernels.evaluation.bench.inputs import clone
from fastkernels.evaluation.bench.judged import Judged
from fastkernels.evaluation.bench.packed import unpack
from fastkernels.evaluation.bench.replies import RunnerFailed
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.site import Site
from fastkernels.evaluation.bench.timed import Bed
from fastkernels.tasks import get_task
from fastkernels.tasks.tensors import tensors
from tests.evaluation.bench.conftest import CPU, trapped

SAMPLED = 16  # every so many elements


class Walked(Chained):
    """A graph's nodes, one after the other, without a device: copies of bytes, and what a call recorded."""

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

    def __init__(self, capture):
        self.arenas, self.device, self.capture, self.harness = {}, CPU, capture, Harness()
        self.harness.parameters = {}

    def order(self, verb, *, timeout=None, descriptors=(), **arguments):
        if verb == "attach":
            arguments["descriptors"] = [os.dup(d) for d in descriptors]
        if verb != "bind":
            return json.loads(json.dumps(getattr(self.harness, verb)(**arguments)))
        slots = [unpack(self.harness.arenas["inputs"].views(places)) for places in arguments["slots"]]
        self.harness.slots = slots
        self.harness.chained = Walked(self.capture(slots), [])

    def stop(self):
        pass


def recorded(slots, work):
    """Captured calls, each with an output of its own; ``work(i, xs, outs)`` is what the graph of call i does."""
    xs = [x for (x,) in slots]
    outs = [torch.full_like(x, torch.nan) for x in xs]
    return [
        Captured(graph=lambda i=i: work(i, xs, outs), arguments=slots[i], outputs=outs[i])  # type: ignore[arg-type,misc]
        for i in range(len(slots))
    ]


def own(i, xs, outs):
    outs[i].copy_(torch.relu(xs[i]))


def all_at_once(i, xs, outs):
    for x, out in zip(xs, outs, strict=True) if i == 0 else ():
        out.copy_(torch.relu(x))


def in_groups(i, xs, outs):
    for j in range(i, min(i + 8, len(xs))) if i % 8 == 0 else ():
        own(j, xs, outs)


def put_off(i, xs, outs):
    for j in range(max(0, i - 1), i + 1) if i % 2 else ():
        own(j, xs, outs)


def one_late(i, xs, outs):
    if i:
        own(i - 1, xs, outs)


def looks_at_a_sample(i, xs, outs):
    if i == 0:
        all_at_once(i, xs, outs)
        looks_at_a_sample.seen = [x.flatten()[::SAMPLED].clone() for x in xs]
    elif not torch.equal(looks_at_a_sample.seen[i], xs[i].flatten()[::SAMPLED]):
        own(i, xs, outs)


def nothing(i, xs, outs):
    pass


@pytest.fixture
def bed(memory):
    def make(task, capture, slots, trusted=None):
        site = Site(get_task(task), next(iter(get_task(task).cases())), torch.float32, memory, 7)
        sharing = site.own_sharing(site.draws[0])
        runners = {"suspect": InProcess(capture)} | ({} if trusted is None else {"trusted": InProcess(trusted)})
        found = Bed(site, runners, suspect="suspect", judged=Judged(sharing=sharing), mode="graph")
        found.bind(slots)
        return found

    return make


@pytest.mark.parametrize("slots", [2, 5, 256])
@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        (own, None, ""),
        (all_at_once, "STALE_OUTPUT", "ahead"),
        (put_off, "TIMED_WRONG", ""),
        (one_late, "TIMED_WRONG", ""),
        (nothing, "TIMED_WRONG", "nobody"),
    ],
)
def test_a_call_that_does_not_do_its_own_work_at_its_turn_is_caught(bed, work, code, said, slots):
    found = trapped(bed("relu", lambda s: recorded(s, work), slots), "suspect")
    assert [f.code for f in found] == ([code] if code else [])
    assert not found or said in found[0].detail


def test_work_for_a_few_neighbours_is_caught_though_not_every_call_is_in_the_batch(bed):
    (failure,) = trapped(bed("relu", lambda s: recorded(s, in_groups), 256), "suspect")
    assert failure.code in ("STALE_OUTPUT", "TIMED_WRONG")


def test_what_was_put_off_is_told_from_what_nobody_did(bed):
    checked = bed("relu", lambda s: recorded(s, put_off), 4).trap("suspect")
    assert "later contents" in checked.check("suspect")


def test_work_that_is_only_done_anew_where_a_sample_is_new_is_caught(bed):
    (failure,) = trapped(bed("relu", lambda s: recorded(s, looks_at_a_sample), 256), "suspect")
    assert failure.code == "STALE_OUTPUT"


@pytest.mark.parametrize("task", ["embedding", "rotary_emb", "topk_softmax", "fused_experts", "attention"])
def test_integers_that_are_brought_are_valid(bed, task):
    module = get_task(task).build(next(iter(get_task(task).cases())), seed=7, device=CPU, dtype=torch.float32)

    def work(slot, outputs):
        for mine, made in zip(tensors(outputs), tensors(module(*slot)), strict=True):
            mine.copy_(made)

    def capture(slots):
        outputs = [module(*clone(slot)) for slot in slots]
        return [
            Captured(graph=lambda s=s, o=o: work(s, o), arguments=s, outputs=o)  # type: ignore[arg-type,misc]
            for s, o in zip(slots, outputs, strict=True)
        ]

    made = bed(task, capture, 12)
    made.site.refresh = lambda generator: None  # the module here has parameters of its own
    assert trapped(made, "suspect") == []


def test_an_output_that_may_be_an_argument_is_left_as_it_is(bed):
    def capture(slots):
        return [Captured(graph=x.relu_, arguments=(x,), outputs=x) for (x,) in slots]  # type: ignore[arg-type]

    made = bed("relu", capture, 12)
    assert {f.code for f in trapped(made, "suspect")} == {"TIMED_WRONG"}
    made.may_scribble = False
    assert trapped(made, "suspect") == []


def test_one_call_alone_is_not_checked(bed):
    assert [bed("relu", lambda s: recorded(s, own), n).trap("suspect").possible for n in (1, 2)] == [False, True]


def test_an_alarm_at_the_baseline_is_the_harnesss_own(bed):
    made = bed("relu", lambda s: recorded(s, own), 8, trusted=lambda s: recorded(s, all_at_once))
    made.trap("suspect").watch("suspect")
    with pytest.raises(RunnerFailed, match="harness's own check"):
        made.trap("suspect").watch("trusted")


def test_steps_come_in_order():
    calls = [Captured(graph=None, arguments=(), outputs=i) for i in range(2)]  # type: ignore[arg-type]
    copies = [Copy(target=i, source=0, count=1) for i in range(4)]
    found = list(interleaved(calls, [copies[:1], copies[1:2]], [copies[2:3], copies[3:]]))
    assert found == [copies[0], calls[0], copies[2], copies[1], calls[1], copies[3]]


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch loads a CUDA runtime")
def test_without_a_cuda_runtime_it_says_so():
    with pytest.raises(RuntimeError, match="no libcudart is loaded"):
        runtime()
