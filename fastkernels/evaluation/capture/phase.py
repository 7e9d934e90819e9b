"""Which phase a call is in: by the length of its queries, or what the engine says of its step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fastkernels.evaluation.capture.record import Phase

QUERIES = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")
# The phase of a step, or None for one that is no request's: a warm-up, an idle rank.
PhaseOf = Callable[[Mapping[str, Any]], "Phase | None"]


def phase_reader(model: nn.Module, engine: str) -> PhaseOf:
    """Reads the phase out of the arguments of a call of the whole model, or out of the engine's forward metadata."""
    if engine == "vllm":
        return lambda arguments: vllm_phase()
    if engine == "sglang":
        return sglang_phase
    generates = getattr(model, "can_generate", None)
    if not callable(generates) or not generates():
        return lambda arguments: "forward"
    return query_phase


def query_phase(arguments: Mapping[str, Any]) -> Phase:
    """``decode`` where each sequence has one query.

    >>> query_phase({"input_ids": torch.zeros(2, 1)}), query_phase({"input_ids": torch.zeros(2, 7)})
    ('decode', 'prefill')
    """
    for name in QUERIES:
        value = arguments.get(name)
        if isinstance(value, torch.Tensor) and value.dim() >= 2:
            return "decode" if value.shape[1] == 1 else "prefill"
    return "forward"


def vllm_phase() -> Phase | None:
    """Of the step that vLLM's forward context describes; None in a dummy run."""
    from vllm.forward_context import get_forward_context, is_forward_context_available

    if not is_forward_context_available():
        return None
    metadata = get_forward_context().attn_metadata
    if isinstance(metadata, list):  # micro-batches
        metadata = metadata[0] if metadata else None
    if not metadata:
        return None
    for told in metadata.values() if isinstance(metadata, dict) else (metadata,):
        longest, starts = getattr(told, "max_query_len", None), getattr(told, "query_start_loc", None)
        if longest is None or starts is None:
            continue
        if longest == 1:
            return "decode"
        lengths = starts.diff()
        return "mixed" if bool((lengths == 1).any()) else "prefill"
    return "forward"


def sglang_phase(arguments: Mapping[str, Any]) -> Phase | None:
    """Of the step that SGLang's forward batch describes; None for an idle one."""
    batch = next((v for v in arguments.values() if hasattr(v, "forward_mode")), None)
    if batch is None:
        return None
    mode = batch.forward_mode
    if mode.is_idle():
        return None
    if mode.is_mixed():
        return "mixed"
    return "decode" if mode.is_decode() else "prefill"
