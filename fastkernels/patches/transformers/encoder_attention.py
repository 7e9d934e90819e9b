"""Self-attention of encoders without an output projection of its own (BERT and its copies: query, key, value).

Modules with one (CLIP, ViT) are task ``attention_block``. What a call of an encoder looks like is defined here for
its layers and stacks too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fastkernels.patches.fingerprint import argument_names, evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Enter, Proposal, Scenario
from fastkernels.patches.source import Rows, Source
from fastkernels.patches.transformers.attention import (
    HEAD_DIM_NAMES,
    IMPLEMENTATIONS,
    SCALE_NAMES,
    SPLIT_NAMES,
    argument_reason,
    implementation_of,
    leave_for,
    outputs,
    returned_values,
    watched_config,
)

KNOWN = ("transformers.models.bert.modeling_bert:BertSelfAttention",)
# Arguments that do not change what a layer computes; outputs asked for are taken by hooks, which the patch sees.
SILENT = frozenset(
    {"position_ids", "use_cache", "cache_position", "output_hidden_states", "return_dict", "interpolate_pos_encoding"}
)
Scenarios = Callable[[Draws], Iterator[Scenario]]


def encoder_attention(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Modules of three projections of one width; what attends causally is a decoder's."""
    children = module._modules
    names = argument_names(type(module))
    split = next((s for s in SPLIT_NAMES if all(type(children.get(n)) is nn.Linear for n in s)), None)
    rest = [c for n, c in children.items() if c is not None and (split is None or n not in split)]
    if split is None or any(True for c in rest for _ in c.parameters()):
        return
    head_name = next((n for n in HEAD_DIM_NAMES if isinstance(module.__dict__.get(n), int)), None)
    returns = returned_values(type(module))
    if head_name is None or returns is None or not names or implementation_of(module) not in IMPLEMENTATIONS:
        return
    if getattr(module, "is_causal", False) or getattr(module, "is_decoder", False):
        return
    shapes = {tuple(children[n].weight.shape) for n in split}
    (rows, hidden), head_dim = next(iter(shapes)), module.__dict__[head_name]
    if len(shapes) != 1 or rows % head_dim:
        return
    biases = [children[n].bias is not None for n in split]
    state: dict[str, Source] = {"qkv_proj.weight": Rows(tuple(f"{n}.weight" for n in split))}
    if any(biases):
        state["qkv_proj.bias"] = Rows(tuple(f"{n}.bias" if b else rows for n, b in zip(split, biases, strict=True)))
    scale_name = next((n for n in SCALE_NAMES if isinstance(module.__dict__.get(n), float)), None)
    frozen = (head_name, "is_causal", "is_decoder", scale_name)
    yield Proposal(
        task="encoder_attention",
        facts={
            "hidden_size": hidden,
            "num_heads": rows // head_dim,
            "head_dim": head_dim,
            "qkv_bias": any(biases),
            "has_output": False,
            "scale": head_dim**-0.5 if scale_name is None else module.__dict__[scale_name],
        },
        state=state,
        enter=enter_for(module, names),
        leave=leave_for(returns),
        scenarios=scenarios_for(module, names, hidden),
        evidence=evidence(type(module), KNOWN),
        inner=tuple(n for n, c in children.items() if c is not None),
        reads=tuple(n for n in frozen if n in module.__dict__),
        watches=watched_config(module),
        drops=True,
    )


def enter_for(attention: nn.Module, names: Sequence[str]) -> Enter:
    """Reads a call of an encoder's attention, layer or stack, whose attention module is ``attention``; ``names`` are
    the names of its arguments, the hidden states first."""
    eager, hooks, first = implementation_of(attention) == "eager", attention._forward_hooks, names[0]
    known = SILENT | {first, "attention_mask", "is_causal"}
    causal = CausalMask()

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        if args:
            kwargs = dict(zip(names, args, strict=False)) | kwargs
        hidden_states, mask = kwargs.get(first), kwargs.get("attention_mask")
        if hidden_states is None or hidden_states.dim() != 3:
            return "hidden states are not (batch, sequence, width)"
        if not kwargs.keys() <= known:
            for name, value in kwargs.items():
                if value is not None and name not in known and not (value is False and name == "output_attentions"):
                    return argument_reason(name, value)
        if eager and hooks:
            return "eager attention with its weights hooked"
        if mask is not None:
            if mask.dim() != 4 or (eager and mask.dtype == torch.bool):
                return f"a mask of {mask.dim()} dimensions and dtype {mask.dtype}"
        elif not eager and kwargs.get("is_causal"):  # eager attention knows no causality but the mask's
            mask = causal(hidden_states)
        return hidden_states, mask

    return enter


class CausalMask:
    """The mask of a text encoder that asks for causality by a flag (CLIP), kept for the last length and device."""

    def __init__(self) -> None:
        self._mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        length, device = hidden_states.shape[1], hidden_states.device
        if torch.compiler.is_compiling():
            return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
        if self._mask.shape[-1] != length or self._mask.device != device:
            self._mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
        return self._mask


def scenarios_for(attention: nn.Module, names: Sequence[str], width: int) -> Scenarios:
    """Without a mask, with padding, and one token, by the names of the module's own arguments."""
    masked = "attention_mask" in names
    required = {"attention_mask": None} if masked else {}

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        def scenario(mask: torch.Tensor | None, length: int, salt: int) -> Scenario:
            call = {names[0]: draw.normal(2, length, width, salt=salt)} | required
            if mask is not None:
                call["attention_mask"] = mask
            return lambda forward: outputs(forward(**call))

        yield scenario(None, 17, 1)
        yield scenario(None, 1, 2)
        if masked:
            seen = torch.ones(2, 1, 17, 17, dtype=torch.bool, device=draw.device)
            seen[0, ..., 11:] = False
            if implementation_of(attention) == "eager":
                bias = torch.zeros(seen.shape, device=draw.device, dtype=draw.dtype)
                seen = bias.masked_fill(~seen, torch.finfo(draw.dtype).min)
            yield scenario(seen, 17, 3)

    return scenarios
