"""Each contestant has its turn: what ends a baseline there is not the candidate's, and nobody works in another's."""

from __future__ import annotations

import contextlib

import pytest
import torch

from fastkernels.evaluation.bench import bystander, process
from fastkernels.evaluation.bench.checked import Checked
from fastkernels.evaluation.bench.judged import Judged
from fastkernels.evaluation.bench.replies import RunnerFailed
from fastkernels.evaluation.bench.site import Site
from fastkernels.evaluation.bench.timed import Bed
from fastkernels.evaluation.bench.times import Times
from fastkernels.evaluation.bench.trap import Trap
from fastkernels.tasks import get_task
from tests.evaluation.bench.test_timed import HONEST

ENDS = """
import os
class ReLU(nn.Module):
    def forward(self, x):
        {how}
        return torch.relu(x)
"""


KILLED, ENDED = ("os.kill(os.getpid(), 9)", "TAMPERED"), ("os._exit(3)", "SKIPPED")


@pytest.mark.parametrize(
    ("doing", "how", "code"),
    [
        *((doing, *how) for doing in ("watch", "timed") for how in (KILLED, ENDED)),
        *((doing, *KILLED) for doing in ("bind", "collect", "check")),
    ],
)
def test_a_baseline_that_ends_in_its_turn_is_told_as_the_baselines(lent, doing, how, code):
    suspect, site = lent(HONEST)
    trusted, _ = lent(ENDS.format(how=how))
    site.lend(trusted)
    bed = Bed(site, {"trusted": trusted, "suspect": suspect}, suspect="suspect", judged=Judged(sharing=[set()]))
    if doing != "bind":
        bed.bind(8)
    if doing in ("bind", "collect", "check"):
        process.kill(trusted.pid)
    with pytest.raises(RunnerFailed, match="while the baseline trusted was timed") as raised:
        {"watch": lambda: Trap(bed, "suspect").watch("trusted"), "bind": lambda: bed.bind(8),
         "timed": lambda: bed.batch("trusted", 8), "check": lambda: Checked(bed, "suspect").check("trusted"),
         "collect": lambda: bed._collect("trusted", list(range(8)), Times())}[doing]()  # fmt: skip
    assert raised.value.code == code


def test_a_suspect_that_runs_in_anothers_turn_is_told(lent):
    spins = """
import threading
def spin():
    while True: pass
class ReLU(nn.Module):
    def forward(self, x):
        threading.Thread(target=spin, daemon=True).start()
        return torch.relu(x)
"""
    suspect, site = lent(spins)
    trusted, _ = lent(
        "import time\nclass ReLU(nn.Module):\n    def forward(self, x): time.sleep(0.02); return torch.relu(x)\n"
    )
    site.lend(trusted)
    bed = Bed(site, {"trusted": trusted, "suspect": suspect}, suspect="suspect", judged=Judged(sharing=[set()]))
    bed.bind(8)
    bed.batch("suspect", 1)
    for _ in range(2):
        bed.batch("trusted", 8)  # it stands still
    process.resume(suspect.pid)  # as a helper of its own would
    with pytest.raises(RunnerFailed, match="of the others' turns") as raised:
        bed.batch("trusted", 8)
    assert raised.value.code == "TAMPERED"


def test_of_every_parameter_a_part_changes_however_it_lies_in_memory(memory):
    task = get_task("linear")
    site = Site(task, next(iter(task.cases())), torch.float32, memory, 3)
    weight = site.values["weight"]
    weight.data = weight.data.t().contiguous().t()
    site.originals["weight"] = weight.detach().clone()
    assert not weight.is_contiguous()
    before = weight.detach().clone()
    site.refresh(torch.Generator().manual_seed(1))
    assert 0 < int((weight != before).sum()) <= before.numel() / 8
    assert site.parameters_intact()


OWN_CALL = """
class ReLU(nn.Module):
    def forward(self, x): return torch.relu(x)
    def __call__(self, x): return torch.zeros_like(x)
"""


@pytest.mark.parametrize("mode", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_what_is_timed_is_forward_whatever_else_a_candidate_can_be_called_by(lent, mode):
    runner, site = lent(OWN_CALL)
    bed = Bed(site, {"suspect": runner}, suspect="suspect", judged=Judged(sharing=[set()]), mode=mode)
    bed.bind(4)
    bed.batch("suspect", 4, Times())
    assert bed.failures == []


@pytest.mark.parametrize("power", [10, 26])
def test_a_suspect_that_holds_much_of_the_machines_memory_is_told(lent, monkeypatch, power):
    monkeypatch.setattr(bystander, "MEMORY_SHARE", (1 << 27) / process.machine_bytes())
    trusted, _ = lent(HONEST)
    suspect, _ = lent(HONEST + f"held = torch.ones(1 << {power})\n")
    found = bystander.Bystander(suspect, list)
    with found.turn(trusted):
        pass
    with pytest.raises(RunnerFailed, match="MiB of the machine") if power > 20 else contextlib.nullcontext():
        found.check()
