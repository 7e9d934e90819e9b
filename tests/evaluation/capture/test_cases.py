"""Captured calls as cases, and the public benchmark's capture JSON."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.capture import capture
from fastkernels.evaluation.capture.cases import cases_of
from fastkernels.evaluation.capture.layout import laid_out
from fastkernels.evaluation.capture.public import OPERATOR, as_public, public_name, read_public, write_public
from fastkernels.evaluation.capture.record import Capture, Routing
from fastkernels.evaluation.capture.report import as_markdown
from fastkernels.evaluation.capture.routing import RoutingCounter, compare, ids_like
from fastkernels.evaluation.capture.store import load_capture, value_of
from fastkernels.tasks import get_task
from tests.evaluation.capture.tiny import generate, mixtral, prompt

STEPS = 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    model = mixtral()
    with capture(model, values="sampled", out=folder):
        generate(model, prompt(), STEPS)
    return load_capture(folder)


def draw(case, seed=0, dtype=torch.float32):
    return case.draw(torch.Generator().manual_seed(seed), CPU, dtype)


@pytest.mark.parametrize("name", ["rms_norm", "linear", "silu", "embedding", "moe_router", "fused_experts"])
def test_every_case_runs_on_the_reference(captured, name):
    task = get_task(name)
    cases = cases_of(captured, task)
    assert cases
    for case in cases:
        outputs = task.build(case)(*draw(case))
        assert all(t.isfinite().all() for t in (outputs if isinstance(outputs, tuple) else [outputs]))


def test_cases_give_captured_values(captured):
    case = cases_of(captured, get_task("fused_experts"))[0]
    stored = {k for s in captured.samples if s.task == "fused_experts" for k in [s.values["topk_ids"]]}
    ids = [value_of(captured, key) for key in stored]
    assert any(torch.equal(draw(case)[2], i) for i in ids if i.shape == draw(case)[2].shape)


def test_draws_of_one_sample_are_near_it_and_never_alike(tmp_path):
    model = mixtral()
    with capture(model, values="sampled", per_kind=1, prompts=True, out=tmp_path):
        generate(model, prompt(), 1)
    found = load_capture(tmp_path)
    (sample,) = (s for s in found.samples if s.task == "fused_experts")
    x, ids = (value_of(found, sample.values[name]) for name in ("hidden_states", "topk_ids"))
    case = cases_of(found, get_task("fused_experts"))[0]
    (one, _, first), (two, _, second) = draw(case, 0), draw(case, 1)
    assert not torch.equal(one, two)
    assert ((one - x).abs() <= 0.016 * x.abs()).all()
    assert torch.equal(first, ids)
    assert torch.equal(second, ids)


def test_cases_keep_strides_and_take_the_dtype_asked_for(captured):
    case = cases_of(captured, get_task("silu"))[0]
    (x,) = draw(case, dtype=torch.bfloat16)
    assert x.stride() == (96, 1)
    assert x.dtype is torch.bfloat16
    *_, ids = draw(cases_of(captured, get_task("fused_experts"))[0], dtype=torch.bfloat16)
    assert ids.dtype is torch.int64


def test_the_most_frequent_call_comes_first_and_a_limit_is_kept(captured):
    cases = cases_of(captured, get_task("rms_norm"))
    assert "decode" in cases[0].name
    assert [c.name for c in cases_of(captured, get_task("rms_norm"), limit=1)] == [cases[0].name]


def test_calls_with_a_cache_make_no_case(captured):
    assert captured.of("attention_block")[0].variants
    assert cases_of(captured, get_task("attention_block")) == []


def test_without_values_ids_follow_the_captured_load():
    model = mixtral()
    with capture(model) as c:
        generate(model, prompt(4, 16), 1)
    found = c.result
    for routing in found.routing:
        routing.load[:] = [97, 1, 1, 1]
    case = cases_of(found, get_task("fused_experts"))[0]
    *_, ids = draw(case)
    assert (ids == 0).any(dim=1).float().mean() > 0.9
    assert all(len(set(row.tolist())) == 2 for row in ids)


@pytest.mark.parametrize("stride", [(1, 4), (3, 1), (8, 1), (0, 1), (6, 2)])
def test_a_layout_has_the_strides_and_the_values(stride):
    tensor = torch.arange(12.0).reshape(4, 3) if 0 not in stride else torch.arange(3.0).expand(4, 3).contiguous()
    made = laid_out(tensor, stride)
    assert torch.equal(made, tensor)
    assert made.stride() == stride


def test_a_layout_that_would_overlap_is_contiguous():
    made = laid_out(torch.arange(12.0).reshape(4, 3), (1, 1))
    assert torch.equal(made, torch.arange(12.0).reshape(4, 3))


def test_uniform_routing_compares_as_uniform_and_hot_experts_are_named():
    counter, generator = RoutingCounter(), torch.Generator().manual_seed(1)
    for _ in range(20):
        counter.add("flat", "decode", torch.rand(64, 8, generator=generator).topk(2).indices, 8)
        hot = torch.stack([torch.full((64,), 5), torch.randint(0, 4, (64,), generator=generator)], 1)
        counter.add("hot", "decode", hot, 8)
    flat, hot = (compare(r) for r in counter.records())
    assert flat.skew == pytest.approx(flat.uniform_skew, rel=0.1)
    assert flat.call_skew == pytest.approx(flat.uniform_call_skew, rel=0.1)
    assert flat.touched == pytest.approx(flat.uniform_touched, rel=0.05)
    assert hot.skew == pytest.approx(4.0)
    assert hot.uniform_skew < 1.3
    assert counter.records()[1].hot(1) == [(5, 0.5)]


def test_drawn_ids_are_distinct_and_skewed_as_the_load_is():
    routing = Routing(
        path="", phase="decode", experts=4, top_k=2, load=[0, 70, 20, 10], touched=1, peaks=1, call_sizes={50: 1}
    )
    ids = ids_like(routing, 400, 2, torch.Generator().manual_seed(0))
    counts = Counter(ids.flatten().tolist())
    assert counts[1] > counts[2] > counts[3] > counts[0]
    assert all(a != b for a, b in ids.tolist())
    assert ids_like(routing, 0, 2, torch.Generator()).shape == (0, 2)


def test_a_public_capture_is_read_as_it_was_written(captured, tmp_path):
    file = tmp_path / public_name(captured, requests=2)
    write_public(captured, file)
    told = json.loads(file.read_text())
    assert all(OPERATOR.fullmatch(name) for name in told["operators"])
    assert told["num_operator_classes_executed"] == len(told["operators"])
    again = as_public(load_capture(file))
    assert again["operators"].keys() == told["operators"].keys()
    for name, operator in told["operators"].items():
        for part in ("init", "forward"):
            assert again["operators"][name][part]["calls"] == operator[part]["calls"]
            assert sorted(map(json.dumps, again["operators"][name][part]["variants"])) == sorted(
                map(json.dumps, operator[part]["variants"])
            )


PUBLIC = {
    "model": "org/model",
    "workload": "mixed",
    "dtype": "torch.bfloat16",
    "engine": "vllm",
    "captured_at": "2026-08-01",
    "max_batch_size": 8,
    "generation": {"max_tokens": 4},
    "verification": {"passed": True},
    "num_operator_classes_instrumented": 2,
    "num_operator_classes_executed": 2,
    "operators": {
        "fastkernels.tasks.baseline.L1.rms_norm:RMSNorm": {
            "init": {"calls": 3, "variants": [{"count": 3, "args": {"hidden_size": 64, "eps": 1e-6}}]},
            "forward": {
                "calls": 7,
                "variants": [
                    {
                        "count": 7,
                        "args": {
                            "x": {"shape": [5, 64], "dtype": "torch.bfloat16", "stride": [64, 1], "device": "cuda"},
                            "residual": {"shape": [5, 64], "dtype": "torch.bfloat16"},
                        },
                        "init_variant_ids": [0],
                    }
                ],
            },
        },
        "fastkernels.tasks.baseline.L1.gla_recurrence:GLA": {
            "init": {"calls": 1, "variants": [{"count": 1, "args": {}}]},
            "forward": {"calls": 0, "variants": []},
        },
    },
}


def test_a_public_capture_makes_cases_and_keeps_what_has_no_task():
    found = read_public(json.dumps(PUBLIC))
    (case,) = cases_of(found, get_task("rms_norm"))
    x, residual = draw(case, dtype=torch.bfloat16)
    assert x.shape == residual.shape == (5, 64)
    assert x.dtype is torch.bfloat16
    outputs = get_task("rms_norm").build(case, dtype=torch.bfloat16)(x, residual)
    assert len(outputs) == 2
    assert as_public(found)["operators"] == PUBLIC["operators"]


@pytest.mark.parametrize(
    ("verification", "passed", "detail"),
    [
        ({"passed": True}, True, ""),
        ({"passed": False, "detail": "rms_norm differs"}, False, "rms_norm differs"),
        ({"passed": None, "reason": "no graphs", "mismatches": []}, None, "reason: no graphs"),
    ],
)
def test_what_a_public_capture_says_of_its_graphs_is_read_shown_and_written_again(verification, passed, detail):
    found = read_public(json.dumps(PUBLIC | {"verification": verification}))
    assert (found.graph.passed, found.graph.detail) == (passed, detail)
    assert {True: "agree", False: "differ", None: "not compared"}[passed] in as_markdown(found)
    again = as_public(Capture.model_validate_json(found.model_dump_json()))
    assert again["verification"] == verification
    kept = [name for name in PUBLIC if not name.startswith(("num_", "verification"))]
    assert {name: again[name] for name in kept} == {name: PUBLIC[name] for name in kept}


def test_an_operator_of_a_public_capture_that_has_no_calls_at_all_is_kept(tmp_path):
    strange = {"vendor.kernels:Op": {"notes": "none"}}
    found = read_public(json.dumps(PUBLIC | {"operators": strange}))
    assert as_public(found)["operators"] == strange


def test_a_public_capture_that_is_none_says_so():
    with pytest.raises(EvaluationError, match="public benchmark's format"):
        read_public(json.dumps(PUBLIC | {"dtype": "torch.no_such"}))
    with pytest.raises(EvaluationError, match="No such file"):
        load_capture("/no/such/capture")


def test_the_report_has_routing_beside_uniform_routing(captured):
    told = as_markdown(captured)
    assert "Captured / uniform" in told
    assert "model.layers.1.mlp.experts | decode | 2 | 4 |" in told
    assert "hidden_states (10, 32) float32, topk_weights (10, 2) float32, topk_ids (10, 2) int64" in told
