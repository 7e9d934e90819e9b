"""vLLM's layers over two ranks (gloo, two processes): a candidate computes the rank's share, the engine the rest."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.offline_vllm import ENVIRONMENT

pytestmark = [pytest.mark.engine, pytest.mark.slow]
pytest.importorskip("vllm")

RANKS = 2
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, object]]]:
    """What each rank's ``tensor_parallel_rank.py`` found, by path of the module."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | ENVIRONMENT | {"VLLM_CACHE_ROOT": str(folder), "PYTHONPATH": str(ROOT)}
    environment |= {"VLLM_DIST_IDENT": f"fastkernels{port}"}  # names the shared memory of these ranks
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.patches.vllm.tensor_parallel_rank", str(rank), str(RANKS), str(port)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        told = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), told[0][1][-4000:] + told[1][1][-4000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in told]


LAYERS = ("qkv", "gathered", "row", "row_of_whole", "row_with_bias", "unreduced", "mlp", "moe")


@pytest.mark.parametrize("path", LAYERS)
def test_a_patched_layer_returns_on_every_rank_what_the_engine_s_own_does(
    ranks: list[dict[str, dict[str, object]]], path: str
) -> None:
    for found in ranks:
        assert found[path]["state"] == "applied", found[path]
        assert found[path]["calls"] == 1
        assert float(str(found[path]["distance"])) < 1e-5


@pytest.mark.parametrize("path", ["row", "mlp", "moe", "gathered"])
def test_a_wrong_candidate_is_refused_on_every_rank(ranks: list[dict[str, dict[str, object]]], path: str) -> None:
    assert all("is off by" in str(found[path]["refused"]) for found in ranks)


def test_a_spread_mlp_with_biases_is_gated(ranks: list[dict[str, dict[str, object]]]) -> None:
    assert all(found["biased_mlp"]["state"] == "gated" for found in ranks)
    assert all("biases" in str(found["biased_mlp"]["reason"]) for found in ranks)


def test_a_spread_embedding_is_gated(ranks: list[dict[str, dict[str, object]]]) -> None:
    assert all(found["embedding"]["state"] == "gated" for found in ranks)
