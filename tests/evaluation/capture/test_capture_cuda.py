"""Captures on a CUDA device."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from fastkernels.evaluation.capture.capture import capture
from fastkernels.evaluation.capture.cases import cases_of
from fastkernels.evaluation.capture.store import load_capture
from fastkernels.tasks import get_task
from tests.engines.tiny import make
from tests.evaluation.capture.engine_driver import PROMPTS, TOKENS, run
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


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A mixture of experts in a vLLM that compiles (without Inductor, which takes its time) and replays graphs."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not in this environment")
    folder = tmp_path_factory.mktemp("served")
    model = make(folder / "models", "qwen3_moe", dtype="bfloat16", layers=3, head_dim=64)
    arguments = {
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.2,
        "compilation_config": {"backend": "eager", "cudagraph_capture_sizes": [1, 4]},
    }
    code, log = run("vllm", model, folder / "out", arguments=arguments, values="sampled")
    assert code == 0, log[-8000:]
    return load_capture(folder / "out" / "rank0")


@pytest.mark.timeout(300)
def test_a_compiled_engine_with_graphs_is_captured_step_by_step(served):
    assert served.root_calls["prefill"] == 1
    assert served.root_calls["decode"] in (TOKENS - 1, TOKENS)
    for site in (*served.of("rms_norm"), *served.of("fused_experts")):
        assert site.calls == served.root_calls, site.path
        assert not site.gated
    for routing in served.routing:
        prefill = routing.phase == "prefill"
        tokens = sum(map(len, PROMPTS)) if prefill else served.root_calls["decode"] * len(PROMPTS)
        assert sum(routing.load) == tokens * routing.top_k  # not those of a graph's padding
    assert served.graph.passed is True
    assert served.graph.padded == {len(PROMPTS): 4}


@pytest.mark.timeout(300)
def test_its_graphs_serve_the_same_after_the_capture(served):
    before, _, after = json.loads((served.folder.parent.parent / "tokens.json").read_text())
    assert before == after


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["rms_norm", "fused_experts"])
def test_its_calls_are_made_again_on_the_device(served, name):
    task, device = get_task(name), torch.device("cuda")
    cases = cases_of(served, task)
    assert cases
    for case in cases:
        arguments = case.draw(torch.Generator().manual_seed(0), device, torch.bfloat16)
        assert all(t.device.type == "cuda" for t in arguments if isinstance(t, torch.Tensor))
        outputs = task.build(case, device=device, dtype=torch.bfloat16)(*arguments)
        assert all(o.isfinite().all() for o in (outputs if isinstance(outputs, tuple) else [outputs]))
