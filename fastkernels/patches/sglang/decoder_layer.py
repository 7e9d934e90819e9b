"""Decoder layers of SGLang: pre-norm, a gated MLP, the residual beside the hidden states, all on one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.engine_attention import PROBED, positions_for, stand_in_for, standing_in
from fastkernels.patches.fingerprint import argument_names, evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.attention_block import MODELS, attend_in
from fastkernels.patches.sglang.bypass import boundaries
from fastkernels.patches.sglang.linear import tensor_parallel
from fastkernels.patches.site import Draws, Enter, Proposal, Scenario, Site
from fastkernels.patches.source import Source

KNOWN = (
    f"{MODELS}.llama:LlamaDecoderLayer",
    f"{MODELS}.qwen2:Qwen2DecoderLayer",
    f"{MODELS}.qwen3:Qwen3DecoderLayer",
)
NAMES = ("positions", "hidden_states", "forward_batch", "residual")
# Of the layer's children: the task of each, and where its state lies in the interface.
PARTS = {
    "self_attn": ("served_attention", "self_attn"),
    "mlp": ("gated_mlp", "mlp"),
    "input_layernorm": ("rms_norm", "input_layernorm"),
    "post_attention_layernorm": ("rms_norm", "post_attention_layernorm.norm"),
}


def served_layer(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Layers whose ``forward`` is, but for names, one of the known, and whose parts are all sites."""
    sure = evidence(type(module), KNOWN)
    named = argument_names(type(module))[: len(NAMES)] == NAMES or boundaries(module)
    if sure == "schema" or not named or set(module._modules) != set(PARTS):
        return
    found = {name: s for name, (task, _) in PARTS.items() if (s := host.site(module._modules[name], task)) is not None}
    if "mlp" not in found or "self_attn" not in found:  # a mixture of experts, or attention of another kind
        return
    reason = _unfit(module, found)
    state: dict[str, Source] = {
        f"{PARTS[name][1]}.{key}": source.under(name)
        for name, site in found.items()
        for key, source in site.proposal.state.items()
    }
    facts: dict[str, Any] = {}
    if not reason:
        attention, mlp, norm = (found[n].proposal.facts for n in ("self_attn", "mlp", "input_layernorm"))
        norm = {k: v for k, v in norm.items() if k != "has_weight"}
        facts = {"attention": attention, "mlp": mlp, "norm": norm}
    yield Proposal(
        task="served_layer",
        facts=facts,
        state={} if reason else state,
        enter=enter_for(module),
        scenarios=scenarios_for(module),
        evidence=sure + PROBED,
        inner=tuple(PARTS),
        parts={image.removesuffix(".norm"): name for name, (_, image) in PARTS.items()},
        on_live_weights=True,
        gated=reason,
    )


def _unfit(module: nn.Module, found: dict[str, Site]) -> str:
    """Why nothing may stand here, or the empty string."""
    if hasattr(module, "layer_communicator"):
        return (
            "its LayerCommunicator scatters, gathers and reduces between its parts, and fuses norms with that, by "
            "flags of each step"
        )
    if boundaries(module):
        return "its boundaries hold the residual, and norm, scatter, gather and reduce between its parts"
    for name in PARTS:
        if name not in found:
            return f"its {name} ({type(module._modules[name]).__name__}) is none that this library knows"
        if found[name].proposal.gated:
            return f"its {name}: {found[name].proposal.gated}"
    norms = [dict(found[n].proposal.facts) for n in ("input_layernorm", "post_attention_layernorm")]
    if norms[0] != norms[1] or norms[0].get("has_weight") is False:
        return "its two norms differ, or have no weight"
    if tensor_parallel(module.mlp.down_proj) > 1 or tensor_parallel(module.self_attn.o_proj) > 1:
        return "its parts are spread over ranks, and the engine reduces between them by flags of each step"
    return ""


def enter_for(module: nn.Module) -> Enter:
    """The layer's arguments by position or by name, and the attention of its block in this step."""
    children = module.self_attn._modules

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        given = dict(zip(NAMES, args, strict=False)) | kwargs if kwargs else dict(zip(NAMES, args, strict=False))
        if len(given) != 4 or len(args) > 4 or any(name not in given for name in NAMES):
            return f"called with {len(args)} positional and {sorted(kwargs)} keyword arguments"
        positions, hidden_states, batch, residual = (given[name] for name in NAMES)
        if positions.dim() != 1 or hidden_states.dim() != 2:
            return "positions of several axes, or hidden states that are not (tokens, width)"
        return positions, hidden_states, residual, attend_in(children, batch)

    return enter


def scenarios_for(module: nn.Module) -> Callable[[Draws], Iterator[Scenario]]:
    """A first layer's step, a later layer's, and one of a single token."""
    block = module.self_attn

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        attention = stand_in_for(block, draw)
        for salt, (tokens, first) in enumerate(((13, False), (5, True), (1, False))):
            positions = positions_for(block, draw, tokens, salt=salt)
            x = draw.normal(tokens, block.hidden_size, salt=10 + salt)
            before = None if first else draw.normal(tokens, block.hidden_size, salt=20 + salt)

            def step(
                forward: Any,
                positions: torch.Tensor = positions,
                x: torch.Tensor = x,
                before: torch.Tensor | None = before,
            ) -> list[torch.Tensor]:
                with standing_in(block, attention):
                    return list(forward(positions, x.clone(), None, None if before is None else before.clone()))

            yield step

    return scenarios
