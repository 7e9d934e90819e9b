"""generate() with a static cache: decoding is one graph with the candidates in it, compiled once, with eager tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._guards import TracingContext
from torch._inductor.custom_graph_pass import CustomGraphPass
from transformers import StaticCache

from fastkernels.runtime.backend import recording
from tests.runtime.generating import NEW, PROMPT, SITES, compiling, gemma, generate, llama, made_early, mistral, patched


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("make", "lowering"),
    [
        (llama, "opaque"),
        (llama, "inline"),
        pytest.param(gemma, "opaque", marks=pytest.mark.slow),
        pytest.param(gemma, "inline", marks=pytest.mark.slow),
    ],
)
def test_decoding_is_one_graph_for_all_tokens_and_all_calls(make: Callable[[], nn.Module], lowering: str) -> None:
    model = make()
    eager = generate(model)
    with patched(model, lowering), recording() as graphs, torch._dynamo.config.patch(error_on_recompile=True):
        assert generate(model, **compiling()) == eager
        assert generate(model, **compiling()) == eager  # with a new cache, at other addresses
    (graph,) = graphs
    assert graph.present.total() == (SITES if lowering == "opaque" else 0)
    assert not graph.copied


@pytest.mark.parametrize("lowering", ["opaque", pytest.param("inline", marks=pytest.mark.slow)])
def test_a_sliding_window_costs_a_graph_for_growing_and_one_for_full_and_none_for_a_candidate(lowering: str) -> None:
    """transformers counts a window's tokens in a Python number: Dynamo takes the first as a constant, then any up to
    the window's size, then any beyond it."""
    model = mistral()
    eager = generate(model)
    with recording() as unpatched:
        assert generate(model, **compiling()) == eager
    torch._dynamo.reset()
    with patched(model, lowering), recording() as graphs:
        assert generate(model, **compiling()) == eager
        assert len(graphs) == len(unpatched) == 3
        assert generate(model, **compiling()) == eager
        assert len(graphs) == 3
    assert [g.present.total() for g in graphs] == [SITES if lowering == "opaque" else 0] * 3


written: list[tuple[set[int], set[int]]] = []


class LooksAtAddresses(CustomGraphPass):
    """Keeps the inputs that a graph writes to, and those at static addresses: CUDA graphs need the one in the other.

    And a number that changes with each token, as a window's length does, may reach no kernel: each value of it would
    be another recording.
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        numbers = [n for n in graph.find_nodes(op="placeholder") if isinstance(n.meta["val"], torch.SymInt)]
        assert not any(isinstance(user.meta.get("val"), torch.Tensor) for n in numbers for user in n.users)
        metadata: Any = TracingContext.get().fw_metadata
        mutated = {i for i, info in enumerate(metadata.input_info) if info.mutates_data}
        written.append((mutated, set(metadata.static_input_indices)))

    def uuid(self) -> None:
        return None


@pytest.mark.parametrize("make", [llama, mistral])
def test_decoding_writes_to_static_addresses_only_and_no_kernel_reads_a_number_that_changes(
    make: Callable[[], nn.Module],
) -> None:
    model = make()
    written.clear()
    with patched(model, "opaque"):
        generate(model, **compiling(post_grad_custom_post_pass=LooksAtAddresses()))
    assert len(written) == (1 if make is llama else 3)
    for mutated, static in written:
        assert len(mutated) >= 4  # keys and values of two layers
        assert mutated <= static


@pytest.mark.parametrize("early", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_forward_compiled_by_hand_is_a_graph_for_prefill_and_one_for_decoding(early: bool) -> None:
    """The cache has to be made before: in a compiled prefill transformers marks no addresses static."""
    model = llama()
    eager = generate(model)
    written.clear()
    with patched(model, "opaque"), recording() as graphs:
        options = {"mode": "reduce-overhead", "post_grad_custom_post_pass": LooksAtAddresses()}
        model.forward = torch.compile(model.forward, backend="fastkernels", fullgraph=True, options=options)
        for _ in range(2):
            cache = made_early(model) if early else StaticCache(config=model.config, max_cache_len=PROMPT + NEW)
            assert generate(model, past_key_values=cache, disable_compile=True) == eager
        del model.forward
    assert [g.present.total() for g in graphs] == [SITES, SITES]
    (_, _), (mutated, static) = written
    assert len(mutated) >= 4
    assert (mutated <= static) is early
