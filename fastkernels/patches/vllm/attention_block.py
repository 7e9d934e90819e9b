"""Attention blocks of vLLM: all but the engine's attention, which stays and is called with its paged cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastkernels.patches.engine_attention import PROBED, attention_facts, positions_for, stand_in_for, standing_in
from fastkernels.patches.fingerprint import argument_names, evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Enter, Leave, Proposal, Scenario, Site
from fastkernels.patches.source import Param, Source
from fastkernels.patches.vllm.collectives import all_reduce
from fastkernels.patches.vllm.engine import gated, is_a
from fastkernels.patches.vllm.rope import ROPE
from fastkernels.tasks.L2.served_attention import QK_NORMS

MODELS = "vllm.model_executor.models"
KNOWN = (
    f"{MODELS}.llama:LlamaAttention",
    f"{MODELS}.qwen2:Qwen2Attention",
    f"{MODELS}.qwen3:Qwen3Attention",
    f"{MODELS}.mixtral:MixtralAttention",
)
NAMES = ("positions", "hidden_states")


def served_attention(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Blocks whose ``forward`` is, but for names, one of the known: what the stand-in hides is then known too."""
    sure = evidence(type(module), KNOWN)
    children = {name: child for name, child in module._modules.items() if child is not None}
    if sure == "schema" or argument_names(type(module)) != NAMES or not {"qkv_proj", "o_proj", "attn"} <= set(children):
        return
    norms = [name for name in ("q_norm", "k_norm") if name in children]
    wanted = {"qkv_proj": ("linear",), "o_proj": ("linear",)} | dict.fromkeys(norms, tuple(QK_NORMS))
    sites = {name: host.site(children.get(name), *tasks) for name, tasks in wanted.items()}
    reason = _unfit(module, sites) or _unfit_rotary(children.get("rotary_emb"))
    if reason:
        yield gated("served_attention", reason)
        return
    found = {name: site for name, site in sites.items() if site is not None}
    state: dict[str, Source] = {
        f"{name}.{key}": source.under(name)
        for name, site in found.items()
        for key, source in site.proposal.state.items()
    }
    state["rotary_emb.cos_sin_cache"] = Param("rotary_emb.cos_sin_cache")
    yield Proposal(
        task="served_attention",
        facts=attention_facts(module, found, norms),
        state=state,
        enter=enter_for(module),
        leave=leave_for(module),
        scenarios=scenarios_for(module),
        evidence=sure + PROBED,
        inner=(*found, "rotary_emb"),
        reads=tuple(n for n in ("num_heads", "num_kv_heads", "head_dim", "q_size", "kv_size") if n in vars(module)),
        on_live_weights=True,
    )


def _unfit(module: nn.Module, sites: dict[str, Site | None]) -> str:
    """Why nothing may stand here, or the empty string."""
    for name, site in sites.items():
        if site is None:
            return f"its {name} ({type(module._modules.get(name)).__name__}) is none that this library knows"
        if site.proposal.gated:
            return f"its {name}: {site.proposal.gated}"
    norms = [dict(site.proposal.facts) for name, site in sites.items() if site is not None and name.endswith("_norm")]
    if any(norm != norms[0] or norm.get("has_weight") is False for norm in norms):
        return "its qk-norms differ, or have no weights"
    return ""


def _unfit_rotary(rotary: nn.Module | None) -> str:
    """The same of the rotary embedding: one table, one position a token. What it returns is used here, so that it does
    not matter whether others rely on it to turn in place."""
    table = None if rotary is None else rotary._buffers.get("cos_sin_cache")
    if not is_a(rotary, ROPE) or table is None or table.dim() != 2:
        return f"its rotary_emb ({type(rotary).__name__}) turns otherwise than by one table of all positions"
    return ""


def reduces(linear: nn.Module) -> bool:
    """Whether a row-parallel linear sums over ranks."""
    return getattr(linear, "tp_size", 1) > 1 and getattr(linear, "reduce_results", False)


def enter_for(module: nn.Module) -> Enter:
    """Positions and hidden states by position or by name, and the attention that the block holds now."""
    children = module._modules

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        given = dict(zip(NAMES, args, strict=False)) | kwargs if args else kwargs
        if len(given) != 2 or len(args) > 2 or "positions" not in given or "hidden_states" not in given:
            return f"called with {len(args)} positional and {sorted(kwargs)} keyword arguments"
        positions, hidden_states = given["positions"], given["hidden_states"]
        if positions.dim() != 1 or hidden_states.dim() != 2:
            return "positions of several axes, or hidden states that are not (tokens, width)"
        return positions, hidden_states, children["attn"]

    return enter


def leave_for(module: nn.Module) -> Leave | None:
    """The sum over tensor-parallel ranks that the engine's ``o_proj`` ends with."""
    out = module.o_proj
    if not reduces(out):
        return None
    return lambda result, call: all_reduce(result) if out.reduce_results else result


@contextmanager
def alone(block: nn.Module, attention: nn.Module, *linears: nn.Module) -> Iterator[None]:
    """``block`` with ``attention`` for the engine's own, and ``linears`` without their sums over ranks: a rank that
    refuses what another takes would leave it waiting."""
    summing = [linear for linear in linears if reduces(linear)]
    with standing_in(block, attention):
        try:
            for linear in summing:
                linear.reduce_results = False
            yield
        finally:
            for linear in summing:
                linear.reduce_results = True


def scenarios_for(module: nn.Module) -> Callable[[Draws], Iterator[Scenario]]:
    """A step of many tokens, and one of a single token."""

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        attention = stand_in_for(module, draw)
        width = module.hidden_size
        for salt, tokens in enumerate((13, 1)):
            positions = positions_for(module, draw, tokens, salt=salt)
            x = draw.normal(tokens, width, salt=10 + salt)  # type: ignore[arg-type] # an int

            def step(forward: Any, positions: torch.Tensor = positions, x: torch.Tensor = x) -> list[torch.Tensor]:
                with alone(module, attention, module.o_proj):
                    return [forward(positions=positions, hidden_states=x.clone())]

            yield step

    return scenarios
