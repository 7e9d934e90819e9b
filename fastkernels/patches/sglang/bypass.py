"""Where SGLang's models walk around a module that they hold: its ``forward`` would never, or not always, be called."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.running import execution, on_cuda, setting

QUERY_AND_KEY = ("q_norm", "k_norm")
BETWEEN_BLOCKS = ("input_layernorm", "post_attention_layernorm")
IN_MLP = ("gate_up_proj", "act_fn")
BOUNDARIES = ("attn_boundary", "ffn_boundary")  # of layers since 0.5.23
FUSIONS = (
    "flashinfer_allreduce_fusion_backend",
    "enable_flashinfer_allreduce_fusion",  # 0.5.13
    "enable_aiter_allreduce_fusion",
)


def walked_around(module: nn.Module, host: Host) -> str:
    """Why calls go elsewhere than to ``module``; empty where the model calls it."""
    owner, _, name = host.path(module).rpartition(".")
    if not name:
        return ""
    parent = host.model.get_submodule(owner)
    if name in (*QUERY_AND_KEY, "rotary_emb") and _fuses_norm_and_rope(parent):
        return "use_fused_qk_norm_rope: the engine's fused kernel normalises and turns query and key in its stead"
    if name in QUERY_AND_KEY:
        return _fused_norm_of_query_and_key(parent)
    if name in BETWEEN_BLOCKS:
        return _fused_with_all_reduce(parent)
    if name in IN_MLP:
        return _fused_gate_up_and_activation(parent, name)
    if name == "norm" and "layers" in parent._modules:
        return _fused_after_the_last_layer(parent)
    return ""


def _fuses_norm_and_rope(attention: nn.Module) -> bool:
    own = vars(attention)
    return bool(own.get("use_fused_qk_norm_rope_cpu") or (own.get("use_fused_qk_norm_rope") and on_cuda()))


def _fused_norm_of_query_and_key(attention: nn.Module) -> str:
    """``apply_qk_norm`` takes the weights of both norms to one kernel, where that has their width: on CUDA, and, since
    0.5.20, on CPUs for which there is one."""
    defined_in = vars(sys.modules[type(attention).__module__])
    if "apply_qk_norm" not in defined_in or (on_cuda() and inductor_fuses()):
        return ""
    from sglang.srt.models import utils

    names = vars(utils)
    query, key = (attention.get_submodule(n) for n in QUERY_AND_KEY)
    epsilons = [vars(norm).get("variance_epsilon") for norm in (query, key)]
    weight: Any = query.weight
    if epsilons[0] != epsilons[1]:
        return ""
    kernel = "fused_inplace_qknorm" if on_cuda() else "fused_qk_norm_cpu"
    fits = names.get(f"can_use_{kernel}")
    if on_cuda():
        fused = fits is None or fits(weight.shape[0], weight.dtype)
    else:
        fused = fits is not None and fits(weight[None], weight[None], weight.shape[0], *epsilons)
    return f"the engine's {kernel} takes its weight, and its forward is never called" if fused else ""


def _fused_with_all_reduce(layer: nn.Module) -> str:
    """With several ranks a LayerCommunicator, or a layer's boundaries, may call ``forward_with_allreduce_fusion``
    instead, or a kernel that the model brings along."""
    known = hasattr(layer, "layer_communicator") or boundaries(layer)
    if not known or (setting("tp_size") or 1) == 1:
        return ""
    brought = any(boundary.fusions is not None for boundary in boundaries(layer))
    if not brought and not any(execution("comm", name) for name in FUSIONS):
        return ""
    return (
        "all-reduce fusion is on: in small batches the engine's kernel adds, normalises and reduces in its stead. "
        "Switch the fusion off to patch it"
    )


def boundaries(layer: nn.Module) -> list[Any]:
    """What prepares and finishes the blocks of a layer, with the residual, since 0.5.23."""
    return [vars(layer)[name] for name in BOUNDARIES if name in vars(layer)]


def _fused_gate_up_and_activation(mlp: nn.Module, name: str) -> str:
    """Since 0.5.23 a dense MLP may compute several of its modules in one kernel, by the number of tokens."""
    own = vars(mlp)
    if getattr(own.get("dual_gemm"), "mode", None) is not None:
        return "dual_gemm: for few tokens the engine's kernel multiplies and activates in its stead"
    if name == "act_fn" and getattr(own.get("activation_quant"), "enabled", False):
        return "activation_quant: in decode the engine's kernel activates and quantises in its stead"
    return ""


def _fused_after_the_last_layer(stack: nn.Module) -> str:
    """A model's own fusions may finish the last layer's experts and normalise in one kernel."""
    layers = [layer for layer in stack.get_submodule("layers").children() if boundaries(layer)]
    if not layers or boundaries(layers[-1])[-1].fusions is None:
        return ""
    return "the model's fusions finish the last layer and normalise in its stead"


def inductor_fuses() -> bool:
    """Whether Inductor compiles the prefill, and is left to fuse these norms itself."""
    prefill = getattr(execution("graph", "cuda_graph_config"), "prefill", None)
    compiler = getattr(prefill, "tc_compiler", None) or execution("graph", "piecewise_cuda_graph_compiler")  # 0.5.13's
    return bool(compiler == "inductor")
