"""Calls that were captured one by one are checked by what their graph brings them. Here a graph is a list of steps that
is walked on the CPU: parent, arenas, copies and the judging are the real ones."""

from __future__ import annotations

import functools

import pytest
import torch

from fastkernels.evaluation.bench.chain import Copy, interleaved
from fastkernels.evaluation.bench.cudart import runtime
from fastkernels.evaluation.bench.graphed import Captured
from fastkernels.evaluation.bench.inputs import clone
from fastkernels.evaluation.bench.replies import RunnerFailed
from fastkernels.tasks import get_task
from fastkernels.tasks.tensors import tensors
from tests.evaluation.bench.conftest import CPU, trapped
from tests.evaluation.bench.walked import in_process, own, recorded

SAMPLED = 16  # every so many elements


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


def last_of(group):
    """Calls only copy their inputs; the last of each ``group`` neighbours does the work of all."""
    private = {}

    def work(i, xs, outs):
        private[i] = xs[i].clone()
        if i % group == group - 1 or i == len(xs) - 1:
            for j in range(i - i % group, i + 1):
                outs[j].copy_(torch.relu(private.get(j, xs[j])))

    return work


def nothing(i, xs, outs):
    pass


def packed_every(count, names=("weight", "bias")):
    """Captures calls of ``linear``, of which every so many copy the parameters that those after them read."""

    def capture(slots, parameters):
        packed = {name: parameters[name].clone() for name in names if name in parameters}
        outs = [x @ parameters["weight"].t() for (x,) in slots]

        def work(i, x):
            for name in packed if i % count == 0 else ():
                packed[name].copy_(parameters[name])
            outs[i].copy_(torch.nn.functional.linear(x, **parameters | packed))

        return [
            Captured(graph=lambda i=i, x=x: work(i, x), arguments=(x,), outputs=outs[i])  # type: ignore[arg-type,misc]
            for i, (x,) in enumerate(slots)
        ]

    return capture


@pytest.fixture
def bed(memory):
    return functools.partial(in_process, memory)


@pytest.mark.parametrize("slots", [2, 5, 256])
@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        (own, None, ""),
        (all_at_once, "STALE_OUTPUT", "ahead"),
        (put_off, "TIMED_WRONG", "later ones"),
        (last_of(1), None, ""),
        (last_of(1 << 20), "TIMED_WRONG", "later ones"),
        (one_late, "TIMED_WRONG", ""),
        (nothing, "TIMED_WRONG", "nobody"),
    ],
)
def test_a_call_that_does_not_do_its_own_work_at_its_turn_is_caught(bed, work, code, said, slots):
    found = trapped(bed("relu", recorded(work), slots), "suspect")
    assert [f.code for f in found] == ([code] if code else [])
    assert not found or said in found[0].detail


@pytest.mark.parametrize("work", [in_groups, last_of(2), last_of(8)])
def test_work_for_a_few_neighbours_is_caught_though_not_every_call_is_in_the_batch(bed, work):
    (failure,) = trapped(bed("relu", recorded(work), 256), "suspect")
    assert failure.code in ("STALE_OUTPUT", "TIMED_WRONG")


@pytest.mark.parametrize("slots", [2, 16, 256])
@pytest.mark.parametrize(
    ("capture", "codes"),
    [
        (packed_every(1), []),
        (packed_every(8), ["STALE_OUTPUT"]),
        (packed_every(1 << 20), ["STALE_OUTPUT"]),
        (packed_every(1 << 20, names=["weight"]), ["TIMED_WRONG"]),  # of a mixture of old and new
    ],
)
def test_parameters_that_one_call_prepares_for_others_are_old_ones(bed, slots, capture, codes):
    made = bed("linear", capture, slots)
    assert [f.code for f in trapped(made, "suspect")] == codes
    assert made.site.parameters_intact()


def test_work_that_is_only_done_anew_where_a_sample_is_new_is_caught(bed):
    (failure,) = trapped(bed("relu", recorded(looks_at_a_sample), 256), "suspect")
    assert failure.code == "STALE_OUTPUT"


@pytest.mark.parametrize("task", ["embedding", "rotary_emb", "topk_softmax", "fused_experts", "attention"])
def test_integers_that_are_brought_are_valid(bed, task):
    module = get_task(task).build(next(iter(get_task(task).cases())), seed=7, device=CPU, dtype=torch.float32)

    def work(slot, outputs):
        for mine, made in zip(tensors(outputs), tensors(module(*slot)), strict=True):
            mine.copy_(made)

    def capture(slots, parameters):
        for name, parameter in module.named_parameters():
            parameter.data = parameters[name]
        outputs = [module(*clone(slot)) for slot in slots]
        return [
            Captured(graph=lambda s=s, o=o: work(s, o), arguments=s, outputs=o)  # type: ignore[arg-type,misc]
            for s, o in zip(slots, outputs, strict=True)
        ]

    assert trapped(bed(task, capture, 12), "suspect") == []


def test_an_output_may_be_an_argument(bed):
    def capture(slots, _):
        return [Captured(graph=x.relu_, arguments=(x,), outputs=x) for (x,) in slots]  # type: ignore[arg-type]

    assert trapped(bed("relu", capture, 12), "suspect") == []


def test_what_a_check_maps_goes_with_it(bed):
    made = bed("relu", recorded(own), 12)
    made.trap("suspect").check("suspect")
    runner = made.runners["suspect"]
    assert "staging" not in {**runner.arenas, **runner.harness.arenas, **made.site.memory._arenas}


def test_one_call_alone_is_not_checked(bed):
    assert [bed("relu", recorded(own), n).trap("suspect").possible for n in (1, 2)] == [False, True]


def test_an_alarm_at_the_baseline_is_the_harnesss_own(bed):
    made = bed("relu", recorded(own), 8, trusted=recorded(all_at_once))
    made.trap("suspect").watch("suspect")
    with pytest.raises(RunnerFailed, match="harness's own check"):
        made.trap("suspect").watch("trusted")


def test_steps_come_in_order():
    calls = [Captured(graph=None, arguments=(), outputs=i) for i in range(4)]  # type: ignore[arg-type]
    copies = [Copy(target=i, source=0, count=1) for i in range(3)]
    found = list(interleaved(calls[:2], [copies[:1], copies[1:]], calls[2:]))
    assert found == [copies[0], calls[0], calls[2], *copies[1:], calls[1], calls[3]]


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch loads a CUDA runtime")
def test_without_a_cuda_runtime_it_says_so():
    with pytest.raises(RuntimeError, match="no libcudart is loaded"):
        runtime()
