"""Linear layers: ``nn.Linear`` and GPT-2's transposed ``Conv1D``."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fastkernels.patches.fingerprint import evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Proposal, one_tensor
from fastkernels.patches.source import Param
from fastkernels.patches.transformers.norms import rows

CONV1D = ("transformers.pytorch_utils:Conv1D",)


def weight_source(module: nn.Module | None) -> Param | None:
    """Where the (out, in) weight of a plain linear layer lies, or None where the module is not one."""
    if type(module) is nn.Linear:
        return Param("weight")
    if module is not None and evidence(type(module), CONV1D) == "class":
        return Param("weight", transposed=True)
    return None


def linear(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Exact classes only: a subclass (quantised, LoRA) is somebody's own."""
    source = weight_source(module)
    if source is None:
        return
    weight = module._parameters["weight"]
    if weight is None or not weight.is_floating_point():
        return
    out_features, in_features = weight.shape[::-1] if source.transposed else weight.shape
    bias = module._parameters.get("bias")
    yield Proposal(
        task="linear",
        facts={"input_size": in_features, "output_size": out_features, "bias": bias is not None},
        state={"weight": source} | ({"bias": Param("bias")} if bias is not None else {}),
        enter=one_tensor,
        leave=without_bias_tuple,
        scenarios=rows(in_features),
        evidence="class",
        on_live_weights=True,
    )


def without_bias_tuple(result: object, call: tuple[object, ...]) -> object:
    """Serving engines' linears return ``(out, bias)``, with the bias None once it is added."""
    return result[0] if isinstance(result, tuple) else result
