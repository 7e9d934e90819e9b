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


def test_no_file_holds_the_prompts(captured):
    told = json.loads((captured.folder / "capture.json").read_text())
    assert told["withheld"] > 0
    assert not any(s["task"] == "embedding" for s in told["samples"])
