"""Attention blocks of SGLang: all but its RadixAttention, which stays and is called with the step's batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.engine_attention import PROBED, attention_facts, positions_for, stand_in_for, standing_in
from fastkernels.patches.fingerprint import argument_names, evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.around import Call, finish_linear, unreduced
from fastkernels.patches.sglang.bypass import walked_around
from fastkernels.patches.sglang.linear import tensor_parallel
from fastkernels.patches.sglang.rope import ONE_TABLE
from fastkernels.patches.sglang.running import layer_class, sequence_parallel
from fastkernels.patches.site import Draws, Enter, Leave, Proposal, Scenario, Site
from fastkernels.patches.source import Param, Source
from fastkernels.tasks.L2.served_attention import QK_NORMS, Attend

MODELS = "sglang.srt.models"
KNOWN = (
    f"{MODELS}.llama:LlamaAttention",
    f"{MODELS}.qwen2:Qwen2Attention",
    f"{MODELS}.qwen3:Qwen3Attention",
    f"{MODELS}.mixtral:MixtralAttention",
)
NAMES = ("positions", "hidden_states", "forward_batch")


def served_attention(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Blocks whose ``forward`` is, but for names, one of the known: what the stand-in hides is then known too."""
    sure = evidence(type(module), KNOWN)
    children = {name: child for name, child in module._modules.items() if child is not None}
    wanted = {"qkv_proj", "o_proj", "attn", "rotary_emb"}
    if sure == "schema" or argument_names(type(module)) != NAMES or not wanted <= set(children):
        return
    norms = [name for name in ("q_norm", "k_norm") if name in children]
    kinds = {"qkv_proj": ("linear",), "o_proj": ("linear",)} | dict.fromkeys(norms, tuple(QK_NORMS))
    found = {name: site for name, tasks in kinds.items() if (site := host.site(children[name], *tasks)) is not None}
    state: dict[str, Source] = {
        f"{name}.{key}": source.under(name)
        for name, site in found.items()
        for key, source in site.proposal.state.items()
    }
    reason = _unfit(module, found, tuple(kinds), host)
    yield Proposal(
        task="served_attention",
        facts={} if reason else attention_facts(module, found, norms),
        state={} if reason else state | {"rotary_emb.cos_sin_cache": Param("rotary_emb.cos_sin_cache")},
        enter=enter_for(module),
        leave=leave_for(module),
        scenarios=scenarios_for(module),
        evidence=sure + PROBED,
        inner=(*found, "rotary_emb"),
        reads=tuple(n for n in ("num_heads", "num_kv_heads", "head_dim", "q_size", "kv_size") if n in vars(module)),
        on_live_weights=True,
        gated=reason,
    )


def _unfit(module: nn.Module, found: dict[str, Site], names: tuple[str, ...], host: Host) -> str:
    """Why nothing may stand here, or the empty string. That the engine takes a norm's weight to a kernel of its own
    and passes the norm over is no reason: the block computes both."""
    for name in names:
        if name not in found:
            return f"its {name} ({type(module._modules[name]).__name__}) is none that this library knows"
        gated = found[name].proposal.gated
        if gated and gated != walked_around(found[name].module, host):
            return f"its {name}: {gated}"
    norms = [dict(found[name].proposal.facts) for name in names if name.endswith("_norm")]
    if any(norm != norms[0] or norm.get("has_weight") is False for norm in norms):
        return "its qk-norms differ, or have no weights"
    rotary = module._modules["rotary_emb"]
    if layer_class(rotary) not in ONE_TABLE:
        return f"its rotary_emb ({type(rotary).__name__}) turns otherwise than by one table of all positions"
    return ""


def attend_in(children: dict[str, nn.Module | None], forward_batch: Any) -> Attend:
    """The block's attention in this step."""
    attention: Any = children["attn"]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention(query, key, value, forward_batch)

    return attend


def enter_for(module: nn.Module) -> Enter:
    """Positions, hidden states and the step's batch, by position or by name."""
    children = module._modules
    split = sequence_parallel() if tensor_parallel(module.o_proj) > 1 else None

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        given = dict(zip(NAMES, args, strict=False)) | kwargs if args else kwargs
        if len(given) != 3 or len(args) > 3 or any(name not in given for name in NAMES):
            return f"called with {len(args)} positional and {sorted(kwargs)} keyword arguments"
        positions, hidden_states, batch = (given[name] for name in NAMES)
        if positions.dim() != 1 or hidden_states.dim() != 2:
            return "positions of several axes, or hidden states that are not (tokens, width)"
        if split is not None and split():
            return "sequence parallelism: ranks hold parts of the sequence"
        return positions, hidden_states, attend_in(children, batch)

    return enter


def leave_for(module: nn.Module) -> Leave | None:
    """What the engine's ``o_proj`` does over ranks with its product."""
    out = module.o_proj
    if tensor_parallel(out) == 1:
        return None
    return lambda product, call: finish_linear(out, product, Call.of((product,), (product,), {}))[0]


def scenarios_for(module: nn.Module) -> Callable[[Draws], Iterator[Scenario]]:
    """A step of many tokens, and one of a single token; each rank by itself."""

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        attention = stand_in_for(module, draw)
        for salt, tokens in enumerate((13, 1)):
            positions = positions_for(module, draw, tokens, salt=salt)
            x = draw.normal(tokens, module.hidden_size, salt=10 + salt)  # type: ignore[arg-type] # an int

            def step(forward: Any, positions: torch.Tensor = positions, x: torch.Tensor = x) -> list[torch.Tensor]:
                with standing_in(module, attention), unreduced(module.o_proj):
                    return [forward(positions=positions, hidden_states=x.clone(), forward_batch=None)]

            yield step

    return scenarios
