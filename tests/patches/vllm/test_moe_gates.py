"""A real vLLM engine: mixtures of experts where nothing may stand, and the seam that their experts have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import fastkernels
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


def test_no_reference_takes_the_place_of_the_fused_experts_for_the_sake_of_a_part_of_them(mixtral: Offline) -> None:
    """On an H200 it cost 30% of a model's speed: the engine's kernel computes the activation on its way."""
    with fastkernels.patch(mixtral.llm, "shipped") as patch:
        assert {site.task for site in patch.report.applied} == {"rms_norm", "rotary_emb"}
        (activation,) = [c for c in patch.report.candidates if c.task == "silu_and_mul"]
        assert activation.state == "unmatched"
