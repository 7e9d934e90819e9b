"""A real vLLM engine: mixtures of experts where nothing may stand, and the seam that their experts have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.offline_vllm import Offline
from tests.patches.vllm.engines import changed, reasons, tiny_engine

pytestmark = pytest.mark.engine
pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    with tiny_engine("mixtral", tmp_path_factory.mktemp("mixtral")) as engine:
        yield engine


def test_experts_that_compute_otherwise_gate_themselves_and_their_block(mixtral: Offline) -> None:
    block = "model.layers.0.block_sparse_moe"
    with changed(mixtral.model.get_submodule(f"{block}.experts.routed_experts"), apply_router_weight_on_input=True):
        assert "multiply the input" in reasons(mixtral, f"{block}.experts.routed_experts")["fused_experts"]
        assert "multiply the input" in reasons(mixtral, block)["shared_expert_moe"]


def test_packed_experts_gate_themselves_and_their_block(mixtral: Offline) -> None:
    routed = mixtral.model.get_submodule("model.layers.1.block_sparse_moe.experts.routed_experts")
    kept = {name: routed._buffers.pop(name) for name in list(routed._buffers)}
    try:
        assert "CPU backend" in reasons(mixtral, "model.layers.1.block_sparse_moe")["shared_expert_moe"]
    finally:
        routed._buffers.update(kept)
