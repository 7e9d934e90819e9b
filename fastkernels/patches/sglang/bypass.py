"""Where SGLang's models walk around a module that they hold: its ``forward`` would never, or not always, be called."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.model_code import named_globals
from fastkernels.patches.sglang.rope_bypass import no_plain_rope
from fastkernels.patches.sglang.running import execution, on_cuda, runs_on, setting

QUERY_AND_KEY = ("q_norm", "k_norm")
BETWEEN_BLOCKS = ("input_layernorm", "post_attention_layernorm")
IN_MLP = ("gate_up_proj", "act_fn")
INDEX = "index_"  # of what sparse attention chooses its tokens with
M3 = "_use_fused_qknorm_rope"  # of MiniMax-M3, on CUDA
DUAL = "fused_dual_residual_rmsnorm"  # of Grok, on every platform
SCALED, DUAL_SCALED = "gemma_rmsnorm_residual_scalar", "gemma_dual_rmsnorm_residual_scalar"  # of Gemma 4
AFTER_MLP = "post_feedforward_layernorm"
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
    if name.removeprefix(INDEX) in (*QUERY_AND_KEY, "rotary_emb") and (
        fused := _fused_norm_and_rope(parent, name, host)
    ):
        return fused
    if hasattr(module, "cos_sin_cache"):
        return no_plain_rope(module, name, parent, host)
    if _is_norm(module) and (fused := _fused_norm_of_heads(parent) or _fused_norms_of_layer(parent, name)):
        return fused
    if name in BETWEEN_BLOCKS:
        return _fused_with_all_reduce(parent)
    if name in IN_MLP:
        return _fused_gate_up_and_activation(parent, name)
    if name == "norm" and "layers" in parent._modules:
        return _fused_after_the_last_layer(parent)
    return ""


def _is_norm(module: nn.Module) -> bool:
    return "variance_epsilon" in vars(module)


def _fused_norm_and_rope(attention: nn.Module, name: str, host: Host) -> str:
    """One kernel for query and key: of their norms, their turning, and a gate between their heads."""
    own, cls, dtype = vars(attention), type(attention), runs_on(host)[1]
    flag = "use_fused_qk_norm_rope" if on_cuda() else "use_fused_qk_norm_rope_cpu"
    if own.get(flag) and dtype in (torch.bfloat16, *(() if on_cuda() else (torch.float16,))):
        return f"{flag}: the engine's fused kernel normalises and turns query and key in its stead"
    if own.get(M3) and (not name.startswith(INDEX) or own.get("idx_head_dim") == 128):
        return f"{M3}: the engine's minimax_qknorm_rope normalises and turns query and key in its stead"
    if on_cuda() and own.get("attn_output_gate") and hasattr(cls, "forward_prepare_cuda_fused"):
        return "forward_prepare_cuda_fused: the engine's kernel normalises and turns query and key in its stead"
    if not on_cuda() and name in QUERY_AND_KEY and hasattr(cls, "forward_prepare_fused_gate"):
        return "fused_qk_gemma_rmsnorm: off CUDA the engine's kernel normalises query and key in its stead"
    return ""


def _fused_norm_of_heads(attention: nn.Module) -> str:
    """``apply_qk_norm`` takes the weights of both norms to one kernel, where that has their width: on CUDA, and, since
    0.5.20, on CPUs for which there is one."""
    if "apply_qk_norm" not in named_globals(type(attention)) or (on_cuda() and inductor_fuses()):
        return ""
    from sglang.srt.models import utils

    names = vars(utils)
    norms: list[Any] = [child for child in attention.children() if _is_norm(child)]
    epsilons = [norm.variance_epsilon for norm in norms]
    weight = norms[0].weight
    if len(set(epsilons)) > 1:
        return ""
    if on_cuda():
        kernel, fits = "fused_inplace_qknorm", names.get("can_use_fused_inplace_qknorm")
        fused = fits is None or fits(weight.shape[0], weight.dtype)
    else:
        kernel, fits = "fused_qk_norm_cpu", names.get("can_use_fused_qk_norm_cpu")
        apart = len(norms) > 1  # a single norm, for both, is called where this is not CUDA
        fused = apart and fits is not None and fits(weight[None], weight[None], weight.shape[0], *epsilons)
    return f"the engine's {kernel} takes its weight, and its forward is never called" if fused else ""


def _fused_norms_of_layer(layer: nn.Module, name: str) -> str:
    """Kernels of two norms with the sum between them, or of a norm with the sum and scale behind it."""
    named = named_globals(type(layer))
    if DUAL in named:
        return f"the engine's {DUAL} takes its weight, and its forward is never called"
    scaled = SCALED if layer._modules.get("moe") is None else DUAL_SCALED
    if on_cuda() and scaled in named and name.startswith(AFTER_MLP) and not vars(layer).get("has_ple"):
        return f"the engine's {scaled} takes its weight, and its forward is never called"
    return ""


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
