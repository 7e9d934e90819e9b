"""Captures in the workers of real engines, on a CPU: ``make engine-test``."""

from __future__ import annotations

import importlib.util
import json

import pytest

from fastkernels.evaluation.capture.cases import cases_of
from fastkernels.evaluation.capture.store import load_capture
from fastkernels.tasks import get_task
from tests.engines.tiny import make
from tests.evaluation.capture.engine_driver import PROMPTS, TOKENS, run

ENGINE = next((e for e in ("vllm", "sglang") if importlib.util.find_spec(e) is not None), None)
pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(300),
    pytest.mark.skipif(ENGINE is None, reason="no engine is in this environment"),
]
LAYERS, EXPERTS, TOP_K = 2, 4, 2


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("capture")
    code, log = run(ENGINE, make(folder / "models", "mixtral"), folder / "out", values="sampled")
    assert code == 0, log
    return load_capture(folder / "out" / "rank0")


def test_every_step_of_the_worker_is_counted_in_its_phase(captured):
    assert (captured.engine, captured.rank) == (ENGINE, 0)
    assert captured.root_calls["prefill"] == 1
    assert captured.root_calls["decode"] in (TOKENS - 1, TOKENS)  # a scheduler may run a step ahead
    norms = captured.of("rms_norm")
    assert len(norms) == 2 * LAYERS + 1
    assert all(site.calls == captured.root_calls for site in norms)


def test_routing_has_every_choice_of_every_token(captured):
    steps = captured.root_calls["decode"]
    by = {(r.path, r.phase): r for r in captured.routing}
    assert len(by) == 2 * LAYERS
    for (_, phase), routing in by.items():
        tokens = sum(map(len, PROMPTS)) if phase == "prefill" else steps * len(PROMPTS)
        assert (routing.experts, routing.top_k, routing.tokens) == (EXPERTS, TOP_K, tokens)
        assert sum(routing.load) == tokens * TOP_K


def test_captured_calls_are_calls_of_the_task(captured):
    import torch

    for name in ("rms_norm", "rotary_emb", "fused_experts"):
        task = get_task(name)
        for case in cases_of(captured, task):
            arguments = case.draw(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float32)
            outputs = task.build(case)(*arguments)
            assert all(o.isfinite().all() for o in (outputs if isinstance(outputs, tuple) else [outputs]))


def test_the_engine_serves_the_same_before_within_and_after(captured):
    tokens = json.loads((captured.folder.parent.parent / "tokens.json").read_text())
    assert tokens[0] == tokens[1] == tokens[2]
    assert all(len(told) == TOKENS for told in tokens[0])


def test_no_file_holds_the_prompts(captured):
    told = json.loads((captured.folder / "capture.json").read_text())
    assert told["withheld"] > 0
    assert not any(s["task"] == "embedding" for s in told["samples"])
    # The first layer's residual, and the experts that it chooses, are functions of a token.
    assert not any("layers.0" in s["path"] and s["task"] in ("rms_norm", "fused_experts") for s in told["samples"])
    assert any("layers.1" in s["path"] and s["task"] == "fused_experts" for s in told["samples"])


vllm_only = pytest.mark.skipif(ENGINE != "vllm", reason="of vLLM")


@vllm_only
def test_the_second_model_runner_is_told_that_no_graph_runs():
    """Its own manager of graphs, without the device that would capture them."""
    from types import SimpleNamespace

    from torch import nn
    from vllm.config import CUDAGraphMode
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager

    from fastkernels.serving.vllm_eager import eager_window

    manager = object.__new__(CudaGraphManager)
    graph = BatchExecutionDescriptor(cg_mode=CUDAGraphMode.FULL, num_tokens=4, num_reqs=4, uniform_token_count=1)
    manager._graphs_captured, manager._candidates = True, {(3, 0): [graph]}
    manager._lora_dispatch_map, manager._max_lora_case = {}, 0
    part = nn.Linear(1, 1)
    part.do_not_compile = False
    compilation = SimpleNamespace(cudagraph_capture_sizes=[1, 4], cudagraph_mode=CUDAGraphMode.FULL)
    worker = SimpleNamespace(
        vllm_config=SimpleNamespace(compilation_config=compilation),
        model_runner=SimpleNamespace(cudagraph_manager=manager),
        get_model=lambda: part,
    )

    def dispatch(tokens):
        return manager.dispatch(tokens, tokens, uniform_token_count=1, num_active_loras=0)

    with eager_window(worker) as told:
        assert part.do_not_compile
        chosen = dispatch(3)
        assert (chosen.cg_mode, chosen.num_tokens, chosen.num_reqs) == (CUDAGraphMode.NONE, 3, 3)
        dispatch(9)
    assert (told.padded, told.outside) == ({3: 4}, {9})
    assert dispatch(3) == graph
    assert part.do_not_compile is False


@vllm_only
def test_an_asynchronous_engine_says_how_it_is_captured():
    from vllm.v1.engine.async_llm import AsyncLLM

    from fastkernels.errors import EvaluationError
    from fastkernels.evaluation.capture.engines import caller

    engine = object.__new__(AsyncLLM)
    with pytest.raises(EvaluationError, match=r"AsyncLLM.*coroutines"):
        caller(engine)
    engine.shutdown = lambda *args, **kwargs: None  # it was never started


@vllm_only
def test_an_option_that_the_engine_does_not_have_is_told_before_it_starts(tmp_path):
    from fastkernels.errors import EvaluationError
    from fastkernels.evaluation.capture.preflight import require_runnable
    from fastkernels.evaluation.e2e.scenario import Entry

    entry = Entry(
        model=str(make(tmp_path, "mixtral")),
        tp=1,
        dtype="float32",
        workloads=("LLM.mixed",),
        engine="vllm",
        engine_options={"max_num_seqs": 4, "max_nun_batched_tokens": 64},
    )
    with pytest.raises(
        EvaluationError, match=r"no option max_nun_batched_tokens\. Did you mean max_num_batched_tokens"
    ):
        require_runnable([entry], name="tiny", device="cpu")
