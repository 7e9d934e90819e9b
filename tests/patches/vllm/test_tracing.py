"""vLLM's modules under Dynamo: a candidate in their place is traced whole, as the engine's compiled forward needs it.

In a process of its own: the eager engines of the other tests switch Dynamo off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.offline_vllm import ENVIRONMENT

pytestmark = pytest.mark.engine
pytest.importorskip("vllm")

ROOT = Path(__file__).parents[3]
PATHS = {
    "llama": (
        "model.embed_tokens",
        "model.layers.0.input_layernorm",
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.0.self_attn.rotary_emb",
        "model.layers.0.mlp",
        "model.layers.0.mlp.act_fn",
    ),
    "mixtral": ("model.layers.0.block_sparse_moe",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_a_patched_module_is_traced_in_one_graph_and_answers_the_same(name: str, tmp_path: Path) -> None:
    environment = os.environ | ENVIRONMENT | {"TORCHDYNAMO_DISABLE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.patches.vllm.traced_modules", name, str(tmp_path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == set(PATHS[name])
    assert all(found["distance"] < 1e-5 and found["marked"] for found in told.values()), told
