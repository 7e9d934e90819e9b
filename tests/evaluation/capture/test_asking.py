"""Asking the workers of an engine: whatever it answers, the caller's error and what was captured are not lost."""

from __future__ import annotations

import pytest
import torch

from fastkernels.errors import EvaluationError, ServingError
from fastkernels.evaluation.capture.capture import capture
from fastkernels.evaluation.capture.engines import END, START, caller
from fastkernels.evaluation.capture.store import load_capture
from fastkernels.serving.sglang_client import gather
from fastkernels.serving.standing import Standing
from fastkernels.serving.worker_report import WorkerReport
from tests.evaluation.capture.tiny import llama


class Worker:
    """An engine of one worker in this process, which may lose its voice."""

    def __init__(self):
        self.model = llama(num_hidden_layers=1).model.layers[0].mlp
        told = WorkerReport(engine="torch", version="", rank=0, world_size=1, pid=0, state="watching")
        self.verbs = Standing(model=self.model, handle=None, told=told).verbs()
        self.lost = False

    def die(self):
        raise RuntimeError("EngineCore encountered an issue")

    def call(self, verb, *arguments):
        answer = self.verbs[verb](*arguments)
        if self.lost and verb == END:
            raise TimeoutError("no answer")
        return [answer]


@pytest.fixture
def worker():
    return Worker()


def test_an_engine_that_dies_does_not_hide_why(worker):
    end, worker.verbs[END] = worker.verbs[END], worker.die
    with pytest.raises(ZeroDivisionError), capture(worker):
        raise ZeroDivisionError
    end()  # this worker lives on, in the tests' own process


def test_what_the_workers_wrote_is_there_when_their_answer_is_not(worker, tmp_path):
    worker.lost = True
    with pytest.raises(EvaluationError, match=r"lies in .*: 1 ranks"), capture(worker, out=tmp_path, values="all") as c:
        worker.model(torch.ones(1, 3, 32))
    assert c.result.site("").variants
    assert load_capture(tmp_path / "rank0") == c.result


def test_a_capture_ends_with_the_error_of_the_calls_and_keeps_what_it_saw(worker, tmp_path):
    c = capture(worker, out=tmp_path)
    with pytest.raises(ZeroDivisionError), c:
        worker.model(1 // 0 if worker.model(torch.ones(1, 3, 32)).numel() else None)
    assert c.result.site("").variants
    assert "forward" not in worker.model.__dict__


def test_a_capture_that_is_somebody_elses_is_not_ended(worker):
    with capture(worker) as first:
        with pytest.raises(ServingError, match="under way already"), capture(worker):
            pass
        worker.model(torch.ones(1, 3, 32))
    assert first.result.site("").variants


class Rpc:
    """vLLM's front end to workers in other processes, which raises what they raised as text."""

    def __init__(self, text):
        self.text = text

    def collective_rpc(self, verb, args=()):
        raise Exception(self.text)


Rpc.__module__ = "vllm.entrypoints.llm"


@pytest.mark.parametrize(("text", "hint"), [("Method is not implemented.", True), ("a capture is under way", False)])
def test_what_a_worker_in_another_process_raised_is_ours(text, hint):
    with pytest.raises(EvaluationError, match=text) as refused:
        capture(Rpc(text)).__enter__()
    assert ("FASTKERNELS_WATCH" in str(refused.value)) is hint


class Async:
    async def collective_rpc(self, verb, args=()):
        return []


def test_engines_that_cannot_be_asked_say_what_to_do():
    with pytest.raises(EvaluationError, match=f"coroutines.*{START}"):
        caller(Async())
    with pytest.raises(EvaluationError, match="A server's client"):
        caller(object())


def test_a_rank_that_does_not_answer_in_time_is_named_with_the_way_out():
    with pytest.raises(ServingError, match=r"no answer in 0 s from rank 0, 1 of 2.*more patience_s"):
        gather(lambda folder: None, verb=END, ranks=2, patience_s=0.0)
