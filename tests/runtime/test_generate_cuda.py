"""generate() on a GPU: every decoded token is a launch of a CUDA graph, and graphs are recorded once, not per token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CompileConfig

from fastkernels.runtime.backend import recording
from fastkernels.runtime.cuda_graphs import launches, recordings, skip_reasons
from tests.runtime.generating import NEW, SITES, gemma, generate, llama, made_early, mistral, patched

pytestmark = pytest.mark.gpu

DECODED = NEW - 1  # the first new token is the prefill's


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiling() -> dict[str, Any]:
    config = CompileConfig(backend="fastkernels", mode="reduce-overhead", fullgraph=True)
    return {"cache_implementation": "static", "compile_config": config}


@pytest.mark.parametrize(
    ("make", "lowering", "graphs_expected"),
    [
        pytest.param(llama, "opaque", 1, id="llama-opaque"),
        pytest.param(llama, "inline", 1, id="llama-inline", marks=pytest.mark.slow),
        pytest.param(gemma, "inline", 1, id="gemma-inline"),
        pytest.param(gemma, "opaque", 1, id="gemma-opaque", marks=pytest.mark.slow),
        pytest.param(mistral, "opaque", 3, id="mistral-opaque"),
        pytest.param(mistral, "inline", 3, id="mistral-inline", marks=pytest.mark.slow),
    ],
)
def test_decoding_replays_cuda_graphs(make: Callable[[], nn.Module], lowering: str, graphs_expected: int) -> None:
    model = make().cuda()
    eager = generate(model)
    with patched(model, lowering), recording() as graphs, skip_reasons() as reasons:
        with launches() as first:
            assert generate(model, **compiling()) == eager
        with launches() as second:  # with a new cache: recorded again if that lies at other addresses
            assert generate(model, **compiling()) == eager
        made = recordings()
    assert len(graphs) == graphs_expected
    assert all(g.present.total() == (SITES if lowering == "opaque" else 0) for g in graphs)
    assert reasons == []
    # The first call of a graph warms up, the second records and launches, as all after it do.
    assert first[0] >= DECODED - graphs_expected
    assert second[0] >= DECODED
    assert made <= 2 * graphs_expected


@pytest.mark.slow
def test_a_forward_compiled_by_hand_replays_over_a_cache_made_before() -> None:
    model = llama().cuda()
    eager = generate(model)
    with patched(model, "opaque"), recording() as graphs, skip_reasons() as reasons:
        model.forward = torch.compile(model.forward, backend="fastkernels", mode="reduce-overhead", fullgraph=True)
        cache = made_early(model)
        assert generate(model, past_key_values=cache, disable_compile=True) == eager
        cache.reset()
        with launches() as launched:
            assert generate(model, past_key_values=cache, disable_compile=True) == eager
        del model.forward
    assert len(graphs) == 2
    assert reasons == []
    assert launched[0] >= DECODED
