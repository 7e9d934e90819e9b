"""Decoder layers of vLLM: pre-norm, a gated MLP, the residual beside the hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.engine_attention import PROBED, positions_for, stand_in_for
from fastkernels.patches.fingerprint import argument_names, evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Enter, Proposal, Scenario, Site
from fastkernels.patches.source import Source
from fastkernels.patches.vllm.attention_block import MODELS, alone, reduces
from fastkernels.patches.vllm.collectives import all_reduce
from fastkernels.patches.vllm.engine import gated

KNOWN = (
    f"{MODELS}.llama:LlamaDecoderLayer",
    f"{MODELS}.qwen2:Qwen2DecoderLayer",
    f"{MODELS}.qwen3:Qwen3DecoderLayer",
)
NAMES = ("positions", "hidden_states", "residual")
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
    if sure == "schema" or argument_names(type(module)) != NAMES or set(module._modules) != set(PARTS):
        return
    found = {name: host.site(module._modules[name], task) for name, (task, _) in PARTS.items()}
    if found["mlp"] is None or found["self_attn"] is None:  # a mixture of experts, or attention of another kind
        return
    sites = {name: site for name, site in found.items() if site is not None}
    reason = _unfit(module, sites)
    if reason:
        yield gated("served_layer", reason)
        return
    state: dict[str, Source] = {
        f"{PARTS[name][1]}.{key}": source.under(name)
        for name, site in sites.items()
        for key, source in site.proposal.state.items()
    }
    attention, mlp, norm = (sites[n].proposal.facts for n in ("self_attn", "mlp", "input_layernorm"))
    yield Proposal(
        task="served_layer",
        facts={"attention": attention, "mlp": mlp, "norm": {k: v for k, v in norm.items() if k != "has_weight"}},
        state=state,
        enter=enter_for(module),
        scenarios=scenarios_for(module),
        evidence=sure + PROBED,
        inner=tuple(PARTS),
        parts={image.removesuffix(".norm"): name for name, (_, image) in PARTS.items()},
        on_live_weights=True,
    )


def _unfit(module: nn.Module, sites: dict[str, Site]) -> str:
    """Why nothing may stand here, or the empty string."""
    for name in PARTS:
        if name not in sites:
            return f"its {name} ({type(module._modules[name]).__name__}) is none that this library knows"
        if sites[name].proposal.gated:
            return f"its {name}: {sites[name].proposal.gated}"
    norms = [dict(sites[n].proposal.facts) for n in ("input_layernorm", "post_attention_layernorm")]
    if norms[0] != norms[1] or norms[0].get("has_weight") is False:
        return "its two norms differ, or have no weight"
    down = module.mlp.down_proj
    if reduces(down) != reduces(module.self_attn.o_proj):
        return "only one of its attention block and its MLP sums over tensor-parallel ranks"
    return ""


def enter_for(module: nn.Module) -> Enter:
    """The layer's arguments by position or by name, the attention that its block holds now, and the sum over ranks."""
    children, down = module.self_attn._modules, module.mlp.down_proj
    reduce = all_reduce if reduces(down) else None

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        given = dict(zip(NAMES, args, strict=False)) | kwargs if kwargs else dict(zip(NAMES, args, strict=False))
        if len(given) != 3 or len(args) > 3 or any(name not in given for name in NAMES):
            return f"called with {len(args)} positional and {sorted(kwargs)} keyword arguments"
        positions, hidden_states, residual = (given[name] for name in NAMES)
        if positions.dim() != 1 or hidden_states.dim() != 2:
            return "positions of several axes, or hidden states that are not (tokens, width)"
        summing = reduce is not None and down.reduce_results
        return positions, hidden_states, residual, children["attn"], reduce if summing else None

    return enter


def scenarios_for(module: nn.Module) -> Callable[[Draws], Iterator[Scenario]]:
    """A first layer's step, a later layer's, and one of a single token."""
    block, down = module.self_attn, module.mlp.down_proj

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
                with alone(block, attention, block.o_proj, down):
                    return list(forward(positions, x.clone(), None if before is None else before.clone()))

            yield step

    return scenarios
