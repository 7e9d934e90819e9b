"""What vLLM's modules need around a call that is no step of the engine: probes and verification run inside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def call_context(vllm_config: Any) -> Iterator[None]:
    """The current configuration, and a forward context without attention metadata.

    Args:
        vllm_config: the ``VllmConfig`` of the worker whose model is called.
    """
    from vllm.config import set_current_vllm_config
    from vllm.forward_context import get_forward_context, set_forward_context

    with set_current_vllm_config(vllm_config), set_forward_context(None, vllm_config):
        # With a list here the engine counts calls to tell its MoE layers apart; a probe calls one of them alone.
        get_forward_context().all_moe_layers = None
        yield
