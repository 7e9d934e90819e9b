"""Blocks and layers put in by the plugin, in whole engines: two tensor-parallel ranks, and piecewise compilation."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.engines.tiny import make
from tests.serving.candidates import norm
from tests.serving.vllm_driver import EAGER, IN_PROCESS, TWO_RANKS, run

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not in this environment"),
]
SOURCES = {
    "served_attention": """
from fastkernels.tasks.L2.served_attention import ServedAttention as Interface

class ServedAttention(Interface):
    def forward(self, positions, hidden_states, attend):
        return super().forward(positions, hidden_states, attend) * 1.0
""",
    "served_layer": """
from fastkernels.tasks.L3.served_layer import ServedDecoderLayer as Interface

class ServedDecoderLayer(Interface):
    def forward(self, positions, hidden_states, residual, attend, reduce=None):
        return super().forward(positions, hidden_states, residual, attend, reduce)
""",
}
LEVELS = {"served_attention": "L2", "served_layer": "L3"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    model = make(folder / "models", "llama")

    def start(*steps, task=None, variables, **arguments):
        told = {}
        if task is not None:
            candidates = norm(folder / task)
            file = candidates / LEVELS[task] / f"{task}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(SOURCES[task])
            told = {"FASTKERNELS_CANDIDATES": str(candidates)}
        ran = run(*steps, model=model, cache=folder / "cache", variables=variables | told, **arguments)
        assert ran.code == 0, ran.log[-4000:]
        return ran.results

    return start


@pytest.fixture(scope="module")
def eager(engine):
    return engine("generate", variables=EAGER | IN_PROCESS)["generate"]


@pytest.mark.slow
@pytest.mark.parametrize("task", SOURCES)
def test_on_two_ranks_each_computes_its_part_and_the_engine_sums_them(engine, eager, task):
    got = engine("generate", "ask:report", task=task, variables=EAGER | TWO_RANKS, tensor_parallel_size=2)
    assert got["generate"] == eager
    for report in got["ask:report"]:
        sites = [s for s in report["patch"]["sites"] if s["task"] == task]
        assert [s["state"] for s in sites] == ["applied"] * 2, json.dumps(sites)
        assert all(s["calls"] > 10 and not s["bypassed"] for s in sites)


@pytest.mark.slow
@pytest.mark.parametrize("task", SOURCES)
def test_compiled_piecewise_the_candidate_is_in_the_graph_with_the_engines_attention_beside_it(engine, task):
    compiled = {"variables": IN_PROCESS, "piecewise": True, "enforce_eager": False}
    want = engine("generate", **compiled)["generate"]
    got = engine("generate", "ask:report", task=task, **compiled)
    assert got["generate"] == want
    (report,) = got["ask:report"]
    sites = [s for s in report["patch"]["sites"] if s["task"] == task]
    assert [(s["state"], s["lowering"]) for s in sites] == [("applied", "inline")] * 2
    assert all("no operator takes its argument attend" in s["lowering_reason"] for s in sites)
    if task == "served_layer":  # the norms inside are operators, and each leaves a receipt
        assert all(any(v.startswith("opaque") for v in s["lowering_inside"].values()) for s in sites)
