"""Where SGLang's models walk around a module that they hold: its ``forward`` would never, or not always, be called."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.running import on_cuda, setting

QUERY_AND_KEY = ("q_norm", "k_norm")
BETWEEN_BLOCKS = ("input_layernorm", "post_attention_layernorm")


def walked_around(module: nn.Module, host: Host) -> str:
    """Why calls go elsewhere than to ``module``; empty where the model calls it."""
    owner, _, name = host.path(module).rpartition(".")
    if not name:
        return ""
    parent = host.model.get_submodule(owner)
    if name in (*QUERY_AND_KEY, "rotary_emb") and vars(parent).get("use_fused_qk_norm_rope") and on_cuda():
        return "use_fused_qk_norm_rope: the engine's fused kernel normalises and turns query and key in its stead"
    if name in QUERY_AND_KEY:
        return _fused_norm_of_query_and_key(parent)
    if name in BETWEEN_BLOCKS:
        return _fused_with_all_reduce(parent)
    return ""


def _fused_norm_of_query_and_key(attention: nn.Module) -> str:
    """On CUDA ``apply_qk_norm`` takes the weights of both norms to one kernel, where that has their width."""
    defined_in = vars(sys.modules[type(attention).__module__])
    if "apply_qk_norm" not in defined_in or not on_cuda() or inductor_fuses():
        return ""
    from sglang.srt.models import utils

    names = vars(utils)
    query, key = (attention.get_submodule(n) for n in QUERY_AND_KEY)
    weight = query.weight
    fits = names.get("can_use_fused_inplace_qknorm")
    if vars(query).get("variance_epsilon") != vars(key).get("variance_epsilon"):
        return ""
    if fits is not None and not fits(weight.shape[0], weight.dtype):
        return ""
    return "the engine's fused_inplace_qknorm takes its weight, and its forward is never called"


def _fused_with_all_reduce(layer: nn.Module) -> str:
    """With several ranks a LayerCommunicator may call ``forward_with_allreduce_fusion`` instead."""
    if not hasattr(layer, "layer_communicator") or (setting("tp_size") or 1) == 1:
        return ""
    named = ("flashinfer_allreduce_fusion_backend", "enable_aiter_allreduce_fusion")
    if not any(execution("comm", name) for name in named):
        return ""
    return (
        "all-reduce fusion is on: in small batches the engine's kernel adds, normalises and reduces in its stead. "
        "Switch the fusion off to patch it"
    )


def inductor_fuses() -> bool:
    """Whether Inductor compiles the prefill, and is left to fuse these norms itself."""
    prefill = getattr(execution("graph", "cuda_graph_config"), "prefill", None)
    return getattr(prefill, "tc_compiler", None) == "inductor"


def execution(group: str, name: str) -> Any:
    """One of the engine's resolved settings on how it executes; None where there is none, or nothing is published."""
    from sglang.srt.runtime_context import get_exec

    try:
        return getattr(getattr(get_exec(), group), name, None)
    except (ValueError, AttributeError, RuntimeError, AssertionError):
        return None
