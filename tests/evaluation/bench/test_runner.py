"""A child can be told, stopped and disbelieved: it never has what it could use against the parent."""

from __future__ import annotations

import time

import pytest
import torch

from fastkernels.evaluation.bench.batch import counted
from fastkernels.evaluation.bench.replies import RunnerFailed
from fastkernels.evaluation.bench.strided import GAP, strided
from fastkernels.tasks.tensors import tensors
from tests.evaluation.bench.conftest import codes

RELU = """
class ReLU(nn.Module):
    def forward(self, x):
        {body}
"""


def candidate(*lines: str) -> str:
    return RELU.format(body="\n        ".join(lines))


def call(runner, site, arguments):
    (outputs,) = site.outputs_for(runner, [site.reference(*arguments)])
    return runner.call(site.give(runner, arguments), outputs)


def test_a_call_computes_what_lies_in_the_parents_memory_at_that_moment(lent):
    runner, site = lent(candidate("return torch.relu(x)"))
    for seed in (1, 2):
        x = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(call(runner, site, (x,)).outputs, torch.relu(x))


def test_new_contents_come_behind_the_same_pointer_and_tensor(lent):
    code = candidate("self.seen = getattr(self, 'seen', set()) | {(x.data_ptr(), id(x), x._version)}",
                     "return torch.full_like(x, float(len(self.seen)))")  # fmt: skip
    runner, site = lent(code)
    for _ in range(3):
        assert torch.equal(call(runner, site, (torch.randn(3, 8),)).outputs, torch.ones(3, 8))


def test_memory_that_nobody_wrote_holds_no_result(lent):
    runner, site = lent(candidate("return torch.empty_like(x)"))
    found = call(runner, site, (torch.randn(64, 64),)).outputs
    assert not torch.isfinite(found).all() or found.abs().min() > 1e30


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", "CRASH", "SIGSEGV"),
        ("import os; os._exit(3)", "CRASH", "exit status 3"),
        ("raise ValueError('no such shape')", "CALL_ERROR", "no such shape"),
        ("raise SystemExit(0)", "CALL_ERROR", "SystemExit"),
    ],
)
def test_how_a_child_ends_is_told(lent, body, code, said):
    runner, site = lent(candidate(body))
    with pytest.raises(RunnerFailed, match=said) as raised:
        call(runner, site, (torch.randn(3, 8),))
    assert raised.value.code == code


def test_a_child_that_hangs_is_ended_in_time(lent):
    runner, site = lent(candidate("while True: pass"), timeout=0.5)
    with pytest.raises(RunnerFailed) as raised:
        call(runner, site, (torch.randn(3, 8),))
    assert raised.value.code == "TIMEOUT"
    assert not runner.alive


def test_a_reply_without_the_orders_nonce_is_forged(lent):
    code = """
import os, json, struct, stat
class ReLU(nn.Module):
    def forward(self, x):
        reply = json.dumps({"nonce": "0" * 32, "value": {}}).encode()
        for fd in range(3, 64):
            try:
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, struct.pack("<I", len(reply)) + reply)
            except OSError:
                pass
        return torch.relu(x)
"""
    runner, site = lent(code)
    with pytest.raises(RunnerFailed) as raised:
        call(runner, site, (torch.randn(3, 8),))
    assert raised.value.code == "FORGED"


def test_a_child_cannot_read_the_memory_of_another_process(lent):
    code = candidate(
        "import os",
        "try:",
        "    open(f'/proc/{os.getppid()}/mem', 'rb'); return torch.relu(x)",
        "except OSError:",
        "    return -torch.relu(x)",
    )
    runner, site = lent(code)
    x = torch.randn(3, 8)
    assert torch.equal(call(runner, site, (x,)).outputs, -torch.relu(x))


def test_a_stopped_child_uses_no_processor(lent):
    from fastkernels.evaluation.bench import process

    code = """
import threading
def spin():
    while True: pass
class ReLU(nn.Module):
    def forward(self, x):
        threading.Thread(target=spin, daemon=True).start()
        return torch.relu(x)
"""
    runner, site = lent(code)
    call(runner, site, (torch.randn(3, 8),))
    runner.stop()
    before = process.cpu_seconds(runner.pid)
    time.sleep(0.1)
    assert process.cpu_seconds(runner.pid) - before < 1e-3  # the system may book what ran before a little late


def test_outputs_that_do_not_fit_are_described_without_contents(lent):
    runner, site = lent(candidate("return torch.zeros(2, 2, dtype=torch.float16)"))
    found = call(runner, site, (torch.randn(3, 8),)).outputs
    assert (found.shape, found.dtype, found.device.type) == ((2, 2), torch.float16, "meta")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return torch.relu(x)[:, :-1]", "WRONG_SHAPE"),
        ("return torch.relu(x).double()", "WRONG_DTYPE"),
        ("return x.relu_()", "MUTATED_INPUT"),
        ("return torch.relu(x).to_sparse()", "WRONG_TYPE"),
        ("return torch.relu(x) * (1 + 1e-3 * torch.rand(()))", "WRONG_OUTPUT"),
        ("return torch.relu(x).as_subclass(type('Lazy', (torch.Tensor,), {}))", "WRONG_TYPE"),
    ],
)
def test_a_wrong_call_is_told_by_its_rule(benched, body, code):
    result = benched(candidate(body))
    assert code in codes(result), result.failures
    assert result.score == 0


@pytest.mark.parametrize("declared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_calls_that_differ_in_bits_pass_only_where_that_is_declared(benched, declared):
    code = f"""
class SiLU(nn.Module):
    nondeterministic = {declared}
    def forward(self, x):
        return torch.nn.functional.silu(x) * (1 + 2e-7 * torch.rand(x.shape))
"""
    assert codes(benched(code, "silu")) == (set() if declared else {"NONDETERMINISTIC"})


def test_all_tensors_of_a_reply_are_the_parents_copies(lent):
    runner, site = lent(candidate("return torch.relu(x)"))
    first = call(runner, site, (torch.ones(3, 8),))
    call(runner, site, (torch.zeros(3, 8),))
    assert all(t.eq(1).all() for t in tensors(first.outputs))


def test_a_position_is_told_before_its_call_and_the_last_one_after_all():
    counter, seen = [-1], []
    for call in counted([("first",), ("second",)], counter):
        seen.append((call, counter[0]))
    assert seen == [(("first",), 0), (("second",), 1)]
    assert counter == [2]


def test_between_rows_with_gaps_a_child_sees_no_number(lent):
    body = "return x.as_strided((2, 32), (32, 1)).isnan().sum().to(x.dtype).expand(x.shape).clone()"
    runner, site = lent(candidate(body))
    site.give(runner, (torch.zeros(64),))  # what lay there before
    x = torch.ones(3, 16)
    called = runner.call(site.give(runner, strided((x,))), site.outputs_for(runner, [x])[0])
    assert called.outputs.tolist() == [[2.0 * GAP] * 16] * 3


def test_no_order_reaches_a_child_that_was_ended(lent):
    runner, site = lent(candidate("return torch.relu(x)"))
    runner.close()
    runner.stop()
    with pytest.raises(RunnerFailed, match="was ended before"):
        site.lend(runner)
