"""Where SGLang's models ask more of a rotary embedding than the task does: no call would be a candidate's."""

from __future__ import annotations

from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.model_code import drops_result_of, heads_apart, named_globals
from fastkernels.patches.sglang.running import on_cuda, resolved, runs_on

FUSED_WRITE = "enable_fused_set_kv_buffer"  # of the engine: whether a step's rope also writes the cache
APART = "with heads on an axis of their own, which the task does not take"
BFLOAT16 = ("bfloat16", "bf16")


def no_plain_rope(rotary: nn.Module, name: str, attention: nn.Module, host: Host) -> str:
    """Why no call of ``rotary``, the child ``name`` of ``attention``, just turns query and key; empty where it does."""
    if "attn_mqa" in attention._modules:
        return f"latent attention: it turns a part of each head, {APART}"
    if heads_apart(type(attention), name):
        return f"where the model calls it, query and key are shaped before, {APART}"
    if on_cuda() and drops_result_of(type(attention), name):
        return "the model relies on query and key being turned in place and drops what it returns"
    if on_cuda() and _writes_cache(rotary, attention, host):
        return (
            f"{FUSED_WRITE}: the engine's kernel turns, and also writes keys and values to the cache "
            "(fused_set_kv_buffer_arg), in each call"
        )
    return ""


def _writes_cache(rotary: nn.Module, attention: nn.Module, host: Host) -> bool:
    """As ``enable_fused_set_kv_buffer`` will say of each step on CUDA, once the cache is allocated: of a bfloat16 one,
    of one kind of layer. The classes that ask it also ask that whole heads are turned, by one row of positions."""
    if FUSED_WRITE not in named_globals(type(attention)):
        return False
    if not vars(attention).get("compatible_with_fused_kv_buffer", True):
        return False
    if rotary.rotary_dim != rotary.head_size:
        return False
    return cache_dtype(host) == "bfloat16" and not windows_apart(host) and not _prefill_is_shared()


def cache_dtype(host: Host) -> str:
    """Name of the dtype of the keys and values that the engine will store; ``auto`` is resolved as it does it."""
    name = str(resolved("model", "kv_cache_dtype") or "auto")
    if name != "auto":
        return "bfloat16" if name in BFLOAT16 else name
    quantised = getattr(getattr(host.model, "quant_config", None), "kv_cache_quant_algo", None)
    if isinstance(quantised, str) and quantised.upper() == "FP8":
        return "fp8_e4m3"
    return str(runs_on(host)[1]).removeprefix("torch.")


def windows_apart(host: Host) -> bool:
    """Whether layers with a sliding window get a cache of their own (``SWAKVPool``)."""
    from sglang.srt.configs.model_config import is_hybrid_swa_model

    config = getattr(host.model, "config", None)
    if config is None or resolved("schedule", "disable_hybrid_swa_memory"):
        return False
    text = getattr(config, "text_config", None) or config
    return bool(is_hybrid_swa_model(getattr(config, "architectures", None) or [], text))


def _prefill_is_shared() -> bool:
    """Until 0.5.17 context parallelism of the prefill switches the fused write off for all steps; since then for those
    that it shares, so that the others still write."""
    from sglang.srt.models import utils

    return "is_prefill_context_parallel_enabled" in vars(utils) and bool(
        resolved("parallel", "enable_prefill_context_parallel")
    )
