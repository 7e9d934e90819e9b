"""On CPUs vLLM packs weights for its own kernels and drops or overwrites the matrices; this keeps them.

Call it in each process before the model is loaded. It doubles the memory that packed weights take."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

KEPT = "fastkernels_kept_"  # and the name of the parameter that was packed


def keep_weights() -> None:
    """Linear layers keep ``weight`` beside the packed one; experts keep theirs as buffers named ``KEPT``.

    Does nothing where vLLM does not run on a CPU, or when it was called before.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _keep_linears()
        _keep_experts()


def _keep_linears() -> None:
    from vllm.model_executor.layers import utils

    packing = utils.dispatch_cpu_unquantized_gemm
    if "kept_by_fastkernels" in vars(packing):
        return

    @functools.wraps(packing)
    def pack(layer: nn.Module, remove_weight: bool) -> None:
        packing(layer, remove_weight=False)

    vars(pack)["kept_by_fastkernels"] = True
    utils.dispatch_cpu_unquantized_gemm = pack


def _keep_experts() -> None:
    try:
        from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    except ImportError:  # a version that packs experts elsewhere: their sites are gated
        return
    packing = CPUUnquantizedExperts.process_weights_after_loading
    if "kept_by_fastkernels" in vars(packing):
        return

    @functools.wraps(packing)
    def pack(self: Any, layer: nn.Module) -> None:
        for name in ("w13_weight", "w2_weight"):
            weight = getattr(layer, name).detach().clone()
            layer.register_buffer(KEPT + name, weight, persistent=False)
        packing(self, layer)

    vars(pack)["kept_by_fastkernels"] = True
    CPUUnquantizedExperts.process_weights_after_loading = pack
