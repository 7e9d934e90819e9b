"""One worker's part in SGLang's own modules, without an engine: graphs, compilation, a model that drafts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.engines.tiny import make
from tests.serving.sglang_candidates import norm
from tests.serving.sglang_driver import environment

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="sglang is not in this environment"),
]

# SGLang's configuration of decode graphs; its runner as far as a worker reads it, on no device that could capture.
SCRIPT = """
import json, sys
from types import SimpleNamespace
import torch
from torch import nn
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt import server_args

from fastkernels.errors import ServingError
from fastkernels.patches.sglang.running import runtime_context
from fastkernels.serving import sglang_worker
from fastkernels.serving.settings import Settings

arguments = server_args.ServerArgs(
    model_path=sys.argv[1], device="cpu", attention_backend="triton", skip_tokenizer_init=True
)
if (context := runtime_context()) is None:  # 0.5.13
    server_args.set_global_server_args_for_scheduler(arguments)
else:
    getattr(arguments, "resolve_once", lambda: None)()
    context.publish(arguments, role="scheduler")
told = {}
ALONE = SimpleNamespace(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, dp_rank=None)

def runner(model, device, draft=False, ps=ALONE):
    return SimpleNamespace(model=model, device=device, is_draft_worker=draft, draft_model_idx=None, ps=ps)

def stand(name, candidates, *arguments, on_error="stop", **more):
    try:
        sglang_worker.stand_on(runner(*arguments, **more), Settings(candidates=candidates, on_error=on_error))
    except ServingError as error:
        told[name] = str(error)
    else:
        told[name] = None

right, on_host = sys.argv[2:]
model = nn.Sequential(RMSNorm(16))
stand("captured, on the host", on_host, model, "cuda")
told["left on it"] = "forward" in vars(model[0])
stand("eager, on the host", on_host, nn.Sequential(RMSNorm(16)), "cpu")

model = nn.Sequential(RMSNorm(16))
stand("captured, right", right, model, "cuda")
assert told["captured, right"] is None, told
report = sglang_worker.STANDINGS["target"].report()
told["compilation"] = report.compilation
told["lowering"] = [s.lowering for s in report.patch.sites]
model[0].enter_torch_compile(num_tokens=1)
with torch.no_grad():
    model(torch.ones(3, 16))
told["calls in compile mode"] = sglang_worker.STANDINGS["target"].report().calls

stand("no ranks", right, model, "cpu", ps=None)
stand("no ranks, serve", right, model, "cpu", ps=None, on_error="serve")
model = nn.Sequential(RMSNorm(16))
model._megakernel = object()
stand("megakernel", right, model, "cuda")
told["left beside it"] = "forward" in vars(model[0])

model = nn.Sequential(RMSNorm(16))
stand("second of two", right, model, "cpu", ps=SimpleNamespace(**(vars(ALONE) | {"tp_rank": 1, "tp_size": 2})))
stand("draft", right, nn.Sequential(nn.Linear(4, 4)), "cpu", draft=True)
told["draft report"] = sglang_worker.STANDINGS["draft"].report().model_dump(
    include={"state", "reason", "model", "rank", "world_size"}
)
print("TOLD" + json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sglang_worker")
    model = make(folder / "models", "llama")
    right = norm(folder / "right")
    on_host = norm(folder / "on_host", host="wide.sum().item()")
    variables = environment()
    variables.pop("TORCHDYNAMO_DISABLE")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(right), str(on_host)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("TOLD"))[4:])


def test_work_on_the_host_is_refused_where_graphs_are_captured_and_nothing_is_left(told):
    reason = told["captured, on the host"]
    assert "works on the host (Tensor.item" in reason and "--disable-cuda-graph" in reason
    assert not told["left on it"]


def test_the_same_is_served_eagerly(told):
    assert told["eager, on the host"] is None


def test_what_is_captured_holds_operators(told):
    assert told["captured, right"] is None
    assert "decode full CUDA graphs" in told["compilation"]
    assert told["lowering"] == ["opaque"]


def test_sglangs_switch_to_its_own_forward_for_compilation_leaves_the_candidate_in(told):
    assert told["calls in compile mode"] == 1


def test_a_version_whose_ranks_are_nowhere_is_refused_or_served_unpatched(told):
    assert "keeps the ranks of a worker where fastkernels does not look" in told["no ranks"]
    assert told["no ranks, serve"] is None


def test_a_megakernel_in_the_models_stead_is_refused_and_nothing_is_left(told):
    assert "--enable-nvidia-megakernel" in told["megakernel"] and not told["left beside it"]


def test_a_draft_reports_as_the_rank_of_its_process(told):
    """Its runner is told a world of its own."""
    assert told["second of two"] is None
    assert (told["draft report"]["rank"], told["draft report"]["world_size"]) == (1, 2)


def test_a_draft_on_which_nothing_applies_stops_no_engine(told):
    assert told["draft"] is None
    assert told["draft report"]["model"] == "draft" and told["draft report"]["state"] == "unpatched"
    assert "no candidate applies" in told["draft report"]["reason"]
