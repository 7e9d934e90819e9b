"""Windows in which an engine runs as Python: SGLang's, whose graph runners there are on GPUs only, on stand-ins."""

from __future__ import annotations

import pytest
import torch

from fastkernels.evaluation.capture.in_worker import graph_check
from fastkernels.serving.graphs import Graphs
from fastkernels.serving.sglang_eager import eager_window


class Batch:
    def __init__(self, tokens):
        self.input_ids, self.batch_size = torch.zeros(tokens), tokens


class GraphRunner:
    """Runs what fits into its largest graph."""

    capture_bs = (1, 2, 4)

    def can_run_graph(self, batch):
        return len(batch.input_ids) <= max(self.capture_bs)


class ModelRunner:
    def __init__(self):
        self.decode_cuda_graph_runner = GraphRunner()
        self.prefill_cuda_graph_runner = None


def test_no_graph_runs_in_the_window_and_its_choice_is_told():
    runner = ModelRunner()
    ask = runner.decode_cuda_graph_runner
    with eager_window(runner) as told:
        assert not ask.can_run_graph(Batch(3))
        assert not ask.can_run_graph(Batch(9))
    assert ask.can_run_graph(Batch(3))
    assert vars(ask) == {}
    check = graph_check(told, "decode full CUDA graphs")
    # The next size is ours, not the engine's word: nothing is said to agree.
    assert (check.passed, check.sizes, check.padded) == (None, [1, 2, 4], {3: 4})
    assert "not verified" in check.detail
    assert told.outside == {9}


def test_graphs_that_no_known_runner_replays_are_not_silent():
    with eager_window(object.__new__(type("Runner", (), {}))) as told:
        pass
    check = graph_check(told, "decode full CUDA graphs")
    assert check.passed is None
    assert "nothing that fastkernels knows" in check.detail
    assert "captures no graphs" in graph_check(told, "eager").detail


def test_the_window_ends_with_an_error_too():
    runner = ModelRunner()
    with pytest.raises(ZeroDivisionError), eager_window(runner):
        raise ZeroDivisionError
    assert runner.decode_cuda_graph_runner.can_run_graph(Batch(1))


def test_a_graph_of_no_captured_size_does_not_pass():
    check = graph_check(Graphs(sizes=[1, 2], padded={3: 4}), "")
    assert check.passed is False
    assert check.differences == ["3 tokens go to a graph of 4, which is not captured"]


def test_without_graphs_nothing_is_compared():
    assert graph_check(None, "eager").passed is None
