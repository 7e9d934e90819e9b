"""Captures on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from fastkernels.evaluation.capture.capture import capture
from tests.evaluation.capture.tiny import llama, mixtral, prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_nothing_is_read_while_a_graph_is_recorded_and_its_shapes_are_seen():
    model, ids = llama(num_hidden_layers=1).cuda(), prompt().cuda()
    with torch.no_grad():
        model(ids, use_cache=False)
        with capture(model, values="all") as c:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                model(ids, use_cache=False)
            before = c.result
            graph.replay()
            torch.cuda.synchronize()
            assert c.result.site("model.norm").calls == before.site("model.norm").calls
    assert before.site("model.norm").calls == {"prefill": 1}
    assert before.samples == []
    assert before.device == "cuda"


def test_routing_and_values_come_from_the_device():
    model, ids = mixtral().cuda().bfloat16(), prompt().cuda()
    with capture(model, values="sampled") as c, torch.no_grad():
        model(ids, use_cache=False)
    assert all(sum(r.load) == ids.numel() * r.top_k for r in c.result.routing)
    assert c.result.stored_bytes > 0
    assert c.result.site("model.norm").variants[0].arguments["x"].device == "cuda"


def test_a_graph_pass_on_the_device_agrees():
    model = llama(num_hidden_layers=1).cuda().model.layers[0].mlp
    with capture(model) as c, torch.no_grad():
        model(torch.ones(1, 3, 32, device="cuda"))
        check = c.check_graph(lambda: model(torch.ones(1, 3, 32, device="cuda")))
    assert check.passed is True
