"""Plain MLPs: two linears H to I and I to H under any names, the activation between them found by its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from fastkernels.patches.fingerprint import evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Proposal, one_tensor
from fastkernels.patches.source import Param, Source
from fastkernels.patches.transformers.activation import KINDS, kind_of, kind_of_function, takes_one_tensor
from fastkernels.patches.transformers.linear import weight_source
from fastkernels.patches.transformers.norms import rows

KNOWN = (
    "transformers.models.clip.modeling_clip:CLIPMLP",
    "transformers.models.vit.modeling_vit:ViTMLP",
    "transformers.models.gpt2.modeling_gpt2:GPT2MLP",
    "transformers.models.distilbert.modeling_distilbert:FFN",
)


def mlp(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Modules of two linears and parameterless others that take one tensor; both orders of the linears are tried."""
    linears = {n: source for n, c in module._modules.items() if (source := weight_source(c)) is not None}
    if len(linears) != 2 or module._parameters or module._buffers or not takes_one_tensor(type(module)):
        return
    others = [c for n, c in module._modules.items() if n not in linears and c is not None]
    if any(True for c in others for _ in c.parameters()) or getattr(module, "chunk_size_feed_forward", None):
        return
    biased = {module._modules[n].bias is not None for n in linears}
    # Functions that the module keeps under the name of an activation instead of a child.
    functions = {n: v for n, v in vars(module).items() if "act" in n and callable(v)}
    kinds = activations(others, functions)
    if len(biased) != 1 or not kinds:
        return
    bias = biased == {True}
    for up, down in (tuple(linears), tuple(linears)[::-1]):
        (inner, hidden), after = _shape(module, up, linears[up]), _shape(module, down, linears[down])
        if after != (hidden, inner):
            continue
        state: dict[str, Source] = {}
        for image, name in (("fc1", up), ("fc2", down)):
            state[f"{image}.weight"] = Param(f"{name}.weight", transposed=linears[name].transposed)
            if bias:
                state[f"{image}.bias"] = Param(f"{name}.bias")
        for kind in kinds:
            yield Proposal(
                task="mlp",
                facts={"hidden_size": hidden, "intermediate_size": inner, "hidden_act": kind, "bias": bias},
                state=state,
                enter=one_tensor,
                scenarios=rows(hidden),
                evidence=evidence(type(module), KNOWN),
                inner=tuple(n for n, c in module._modules.items() if c is not None),
                parts={"fc1": up, "fc2": down},
                reads=(*functions, *(n for n in vars(module) if n == "chunk_size_feed_forward")),
                drops=_drops(module, others),
            )


def activations(others: list[nn.Module], functions: Mapping[str, Callable[..., Any]]) -> tuple[str, ...]:
    """The activation of the child or function that is one; all of them where nothing but ``forward`` can say."""
    acts = [c for c in others if not isinstance(c, nn.Identity) and "Dropout" not in type(c).__name__]
    found = [kind_of(c) for c in acts] or [kind_of_function(f) for f in functions.values()]
    if not found:
        return tuple(KINDS)
    return (found[0],) if len(found) == 1 and found[0] is not None else ()


def _shape(module: nn.Module, name: str, source: Param) -> tuple[int, int]:
    shape = module.get_parameter(f"{name}.weight").shape
    return (shape[1], shape[0]) if source.transposed else (shape[0], shape[1])


def _drops(module: nn.Module, others: list[nn.Module]) -> bool:
    """Whether there is dropout anywhere: as a child, or as a rate that ``forward`` may use."""
    rates = (v for n, v in vars(module).items() if "drop" in n and isinstance(v, float))
    return any(rates) or any(getattr(c, "p", 0) for c in others if "Dropout" in type(c).__name__)
