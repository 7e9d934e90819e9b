"""The clock is the parent's, the contents are new in every batch, and what timed calls returned is judged."""

from __future__ import annotations

import pytest
import torch

from fastkernels.evaluation.bench.judged import Judged
from fastkernels.evaluation.bench.replies import RunnerFailed
from fastkernels.evaluation.bench.ring import Ring
from fastkernels.evaluation.bench.site import Site
from fastkernels.evaluation.bench.timed import Bed
from fastkernels.evaluation.bench.times import Times
from fastkernels.tasks import get_task
from tests.evaluation.bench.conftest import codes, trapped

BY_POINTER = """
SEEN = {}
class ReLU(nn.Module):
    def forward(self, x):
        key = (x.data_ptr(), tuple(x.shape))
        if key not in SEEN:
            SEEN[key] = torch.relu(x)
        return SEEN[key].clone()
"""
EARLY = """
class ReLU(nn.Module):
    calls = 0
    def forward(self, x):
        ReLU.calls += 1
        if ReLU.calls > 200:
            return torch.empty_like(x)
        return torch.relu(x)
"""
ONE_BUFFER = """
class ReLU(nn.Module):
    def forward(self, x):
        if getattr(self, "out", None) is None or self.out.shape != x.shape:
            self.out = torch.empty_like(x)
        return torch.relu(x, out=self.out) if False else self.out.copy_(torch.relu(x))
"""
THREAD = """
import threading, time
def later(x, out):
    time.sleep(0.002)
    out.copy_(torch.relu(x))
class ReLU(nn.Module):
    def forward(self, x):
        out = torch.empty_like(x)
        threading.Thread(target=later, args=(x, out)).start()
        return out
"""
STALE_WEIGHT = """
class Linear(nn.Linear):
    def __init__(self, *args, **kwargs):
        from fastkernels.tasks import get_task
        nn.Module.__init__(self)
        inner = get_task("linear").interface(*args, **kwargs)
        for name, parameter in inner.named_parameters():
            self.register_parameter(name, parameter)
        self.packed = None
    def forward(self, x):
        if self.packed is None:
            self.packed = self.weight.t().contiguous()
        out = x @ self.packed
        return out if self.bias is None else out + self.bias
"""


@pytest.mark.parametrize(
    ("code", "task", "wanted"),
    [
        (BY_POINTER, "relu", {"STALE_OUTPUT"}),
        pytest.param(EARLY, "relu", {"TIMED_WRONG"}, marks=pytest.mark.slow),
        pytest.param(ONE_BUFFER, "relu", {"TIMED_WRONG", "ALIASED"}, marks=pytest.mark.slow),
        (THREAD, "relu", {"WRONG_OUTPUT", "TIMED_WRONG", "NONDETERMINISTIC"}),
        pytest.param(STALE_WEIGHT, "linear", {"TIMED_WRONG"}, marks=pytest.mark.slow),
    ],
)
def test_work_that_is_not_done_in_every_call_is_found_out(benched, code, task, wanted):
    case = next(c.name for c in get_task(task).cases())
    result = benched(code, task, case=case)
    assert codes(result) & wanted, result.failures
    assert result.score == 0


def test_no_two_calls_of_all_batches_have_the_same_contents(memory):
    site = Site(get_task("relu"), next(iter(get_task("relu").cases())), torch.float32, memory, 3)
    ring = Ring(site, 32)
    seen = set()
    for _ in range(3):
        ring.renew()
        seen |= {tuple(ring.contents(slot)[0].flatten().tolist()) for slot in range(32)}
    assert len(seen) == 3 * 32


def test_pointers_stay_the_same_from_batch_to_batch(memory):
    site = Site(get_task("relu"), next(iter(get_task("relu").cases())), torch.float32, memory, 3)
    ring = Ring(site, 4)
    before = [ring.arena.views(p)[0].data_ptr() for p in ring.places]
    ring.renew()
    assert [ring.arena.views(p)[0].data_ptr() for p in ring.places] == before


def test_the_storage_of_an_argument_ends_where_the_argument_ends(memory):
    site = Site(get_task("relu"), next(iter(get_task("relu").cases())), torch.float32, memory, 3)
    (x,) = Ring(site, 4).contents(0)
    ring = Ring(site, 4)
    view = ring.arena.views(ring.places[0])[0]
    assert view.untyped_storage().nbytes() == x.numel() * x.element_size()


READS_AHEAD = """
import gc
class ReLU(nn.Module):
    ahead = {}
    def forward(self, x):
        torch.relu(x)
        out = ReLU.ahead.pop(x.data_ptr(), None)
        if out is not None and out.shape == x.shape:
            return out
        known = [o for o in gc.get_objects() if type(o) is tuple and len(o) == 1 and isinstance(o[0], torch.Tensor)]
        ReLU.ahead = {o[0].data_ptr(): torch.relu(o[0]) for o in known if o[0].shape == x.shape}
        ReLU.ahead.pop(x.data_ptr(), None)
        return torch.relu(x)
"""


HONEST = "class ReLU(nn.Module):\n    def forward(self, x): return torch.relu(x)\n"


def caught(lent, code: str, slots: int) -> set[str]:
    """Codes of five tries. A trap closes on calls that have not begun: on a busy machine not every one does."""
    runner, site = lent(code)
    bed = Bed(site, {"suspect": runner}, suspect="suspect", judged=Judged(sharing=[set()]))
    bed.bind(slots)
    found = {f.code for _ in range(5) for f in trapped(bed, "suspect")}
    runner.close()
    return found


def test_inputs_that_are_read_ahead_of_their_calls_give_the_old_outputs(lent):
    assert [caught(lent, code, 1024) for code in (READS_AHEAD, HONEST)] == [{"STALE_OUTPUT"}, set()]


PUTS_OFF = """
class ReLU(nn.Module):
    waiting = []
    def forward(self, x):
        out = torch.empty_like(x)
        ReLU.waiting.append((x, out))
        if len(ReLU.waiting) >= 200:
            for x, y in ReLU.waiting:
                torch.clamp(x, min=0, out=y)
            ReLU.waiting.clear()
        return out
"""


def test_work_that_is_put_off_gives_the_outputs_of_contents_that_came_after(lent):
    assert [caught(lent, code, 1000) for code in (PUTS_OFF, HONEST)] == [{"TIMED_WRONG"}, set()]


# Honest in the first half of a batch, and after any pause: it is not to be seen where the process was halted.
PUTS_OFF_LATE = """
import time
class ReLU(nn.Module):
    at, last, waiting = 0, 0.0, []
    def forward(self, x):
        cls = ReLU
        cls.at = cls.at + 1 if time.perf_counter() - cls.last < 2e-3 else 1
        if cls.at > 2000:
            out = torch.empty_like(x)
            cls.waiting.append((x, out))
        else:
            out = torch.relu(x)
        if len(cls.waiting) == 40 or cls.at <= 2000:
            for x, y in cls.waiting:
                torch.clamp(x, min=0, out=y)
            cls.waiting.clear()
        cls.last = time.perf_counter()
        return out
"""


def test_work_that_is_put_off_where_no_pause_was_is_found_without_one(lent):
    assert caught(lent, PUTS_OFF_LATE, 4000) == {"TIMED_WRONG"}


def test_the_last_call_of_a_batch_is_always_judged(lent):
    runner, site = lent(PUTS_OFF)
    bed = Bed(site, {"suspect": runner}, suspect="suspect", judged=Judged(sharing=[set()]))
    bed.bind(64)
    bed.batch("suspect", 64, Times())
    assert any("timed call 64 of 64" in f.where for f in bed.failures)


def test_contents_change_everywhere_but_where_a_call_is_running(memory):
    site = Site(get_task("relu"), next(iter(get_task("relu").cases())), torch.float32, memory, 3)
    ring = Ring(site, 8)
    ring._step = 3  # several steps, as large inputs take
    before = [ring.contents(slot)[0] for slot in range(8)]
    ring.renew(but=4)
    assert [torch.equal(ring.contents(slot)[0], old) for slot, old in enumerate(before)] == [s == 4 for s in range(8)]


@pytest.mark.slow
def test_twice_the_work_reads_half_as_fast(lent):
    code = "class ReLU(nn.Module):\n    def forward(self, x):\n        return [x.sin() for _ in range({})][0]\n"
    once, site = lent(code.format(10))
    twice, _ = lent(code.format(20))
    for runner in (once, twice):
        site.lend(runner)
        runner.stop()
    bed = Bed(site, {"once": once, "twice": twice}, suspect=None, judged=Judged(sharing=[set()]))
    contest = bed.contest(bed.estimates(), 8)
    one, two = (contest.times[n].timing(contest.fixed).seconds for n in ("once", "twice"))
    assert two / one == pytest.approx(1.95, abs=0.15)  # a call's own cost is in both


def test_a_baseline_that_fails_in_a_batch_leaves_and_the_suspect_does_not(lent):
    fails = "class ReLU(nn.Module):\n    def forward(self, x): raise ValueError('no room')\n"
    honest, site = lent("class ReLU(nn.Module):\n    def forward(self, x): return torch.relu(x)\n")
    broken, _ = lent(fails)
    site.lend(broken)
    runners = {"suspect": honest, "broken": broken}
    bed = Bed(site, runners, suspect="suspect", judged=Judged(sharing=[set()]))
    assert set(bed.estimates()) == {"suspect"} == set(bed.runners)
    assert "no room" in bed.notes[0]
    other = Bed(site, runners, suspect="broken", judged=Judged(sharing=[set()]))
    with pytest.raises(RunnerFailed, match="no room"):
        other.estimates()
