"""Which phase a call is in: by the length of its queries, or what the engine says of its step; ``unknown`` where
drafted tokens make that ambiguous."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.record import Phase

QUERIES = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")
SPECULATIVE = ("is_target_verify", "is_draft_extend", "is_draft_extend_v2")  # of SGLang's modes
# The phase of a step, or None for one that is no request's: a warm-up, an idle rank.
PhaseOf = Callable[[Mapping[str, Any]], "Phase | None"]


def phase_reader(model: nn.Module, engine: str) -> PhaseOf:
    """Reads the phase out of the arguments of a call of the whole model, or out of the engine's forward metadata."""
    if engine == "vllm":
        config = next((c for p in model.modules() if (c := getattr(p, "vllm_config", None)) is not None), None)
        require_whole_steps(config)
        drafted = drafted_by(config)
        return lambda arguments: vllm_phase(drafted)
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


def require_whole_steps(config: Any) -> None:
    """Raises EvaluationError where vLLM runs a step as micro-batches, two threads in one model at a time."""
    parallel = getattr(config, "parallel_config", None)
    if getattr(parallel, "use_ubatching", False) or getattr(parallel, "enable_dbo", False):
        raise EvaluationError(
            "capture: this vLLM runs a step as micro-batches, in threads that pass through the model together; their "
            "calls could not be told apart. Start the engine without --enable-dbo."
        )


def drafted_by(config: Any) -> int:
    """Tokens that may be drafted for a sequence in a step; 0 without speculative decoding."""
    speculative = getattr(config, "speculative_config", None)
    return int(getattr(speculative, "num_speculative_tokens", 0) or 0)


def vllm_phase(drafted: int = 0) -> Phase | None:
    """Of the step that vLLM's forward context describes; None in a dummy run.

    Args:
        drafted: most tokens that are drafted for a sequence: a query of as many and one may be a decode's, or a short
            prompt's, which nothing there tells apart: ``unknown``.
    """
    from vllm.forward_context import get_forward_context, is_forward_context_available

    if not is_forward_context_available():
        return None
    metadata = get_forward_context().attn_metadata
    if isinstance(metadata, list):  # micro-batches, of one step
        metadata = metadata[0] if metadata else None
    if not metadata:
        return None
    for told in metadata.values() if isinstance(metadata, dict) else (metadata,):
        longest, starts = getattr(told, "max_query_len", None), getattr(told, "query_start_loc", None)
        if longest is not None and starts is not None:
            if longest == 1:  # without a look at the device
                return "decode"
            lengths = starts.diff()
            return phase_of(int(longest), lengths[lengths > 0], drafted)  # those of none pad a graph
        decodes, prefills = getattr(told, "num_decodes", None), getattr(told, "num_prefills", None)
        if isinstance(decodes, int) and isinstance(prefills, int):
            if decodes and drafted:
                return "unknown"
            return "mixed" if decodes and prefills else "decode" if decodes else "prefill"
    return "forward"


def phase_of(longest: int, lengths: torch.Tensor, drafted: int = 0) -> Phase:
    """Of a step by the lengths of its queries, (sequences,).

    >>> phase_of(1, torch.tensor([1, 1])), phase_of(7, torch.tensor([1, 7])), phase_of(7, torch.tensor([7]))
    ('decode', 'mixed', 'prefill')
    >>> phase_of(4, torch.tensor([4, 4]), drafted=3), phase_of(9, torch.tensor([9]), drafted=3)
    ('unknown', 'prefill')
    """
    if longest == 1:
        return "decode"
    if drafted:
        return "unknown" if bool((lengths <= drafted + 1).any()) else "prefill"
    return "mixed" if bool((lengths == 1).any()) else "prefill"


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
    if mode.is_decode():
        return "decode"
    # Verified drafts, and what a draft model prefills of them, are counted to the extensions there.
    speculative = (getattr(mode, name, None) for name in SPECULATIVE)
    return "unknown" if any(callable(is_it) and is_it() for is_it in speculative) else "prefill"
