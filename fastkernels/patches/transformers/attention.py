"""Attention blocks of transformers: q, k, v as three linears or one, any RoPE, qk-norms, masks and caches as given."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fastkernels.patches.fingerprint import argument_names, evidence, syntax_of
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Enter, Leave, Proposal, Scenario
from fastkernels.patches.source import Param, Rows, Source
from fastkernels.patches.transformers.cache import append, append_maskless
from fastkernels.patches.transformers.rope import Halves, Table, halves_for, table_for

KNOWN = (
    "transformers.models.llama.modeling_llama:LlamaAttention",
    "transformers.models.qwen2.modeling_qwen2:Qwen2Attention",
    "transformers.models.qwen3.modeling_qwen3:Qwen3Attention",
    "transformers.models.phi3.modeling_phi3:Phi3Attention",
    "transformers.models.clip.modeling_clip:CLIPAttention",
)
SPLIT_NAMES = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
)
FUSED_NAMES = ("qkv_proj", "qkv", "Wqkv", "query_key_value", "c_attn")
OUT_NAMES = (
    "o_proj",
    "out_proj",
    "dense",
    "wo",
    "c_proj",
    "proj",
    "o",
    "projection",
    "projection_layer",
    "out_lin",
    "output",
)
HEAD_DIM_NAMES = ("head_dim", "attention_head_size", "head_size")
SCALE_NAMES = ("scaling", "scale", "softmax_scale", "norm_factor")
NORM_NAMES = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("q_ln", "k_ln"))
# Arguments that do not change the result once the mask and the tables are given.
SILENT = frozenset(
    {
        "position_ids",
        "use_cache",
        "cache_position",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",  # of mixtures of experts: recorded by hooks on their routers
    }
)
IMPLEMENTATIONS = ("sdpa", "eager")


@dataclass(frozen=True)
class Reading:
    """What an attention module's attributes say, before RoPE variants are tried."""

    facts: Mapping[str, Any]
    state: Mapping[str, Source]
    inner: tuple[str, ...]
    reads: tuple[str, ...]


def attention_block(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Modules with q, k, v and output projections that attend over their own hidden states."""
    reading = read(module, host)
    names = argument_names(type(module))
    if reading is None or not names or implementation_of(module) not in IMPLEMENTATIONS:
        return
    takes_tables = "position_embeddings" in names
    table = table_for(module, host, length=24) if takes_tables else None
    if takes_tables and table is None:
        return
    styles: tuple[bool | None, ...] = (None,)
    if table is not None:
        styles = (False, True) if table.layout == "interleave" else (True, False)
    returns = returned_values(type(module))
    if returns is None:
        return
    for neox in styles:
        facts = dict(reading.facts)
        facts |= {"rotary_dim": 0} if table is None else {"rotary_dim": table.rotary_dim, "is_neox_style": neox}
        yield Proposal(
            task="attention_block",
            facts=facts,
            state=reading.state,
            enter=enter_for(module, names, halves_for(table, host), causal=facts["causal"]),
            leave=leave_for(returns),
            scenarios=scenarios_for(module, names, table, causal=facts["causal"]),
            evidence=evidence(type(module), KNOWN),
            inner=reading.inner,
            reads=reading.reads,
            watches=watched_config(module),
            drops=True,
        )


def read(module: nn.Module, host: Host) -> Reading | None:
    """Projections, heads, norms and scale, from names and shapes."""
    children = module._modules
    out = next((n for n in OUT_NAMES if type(children.get(n)) is nn.Linear), None)
    split = next((s for s in SPLIT_NAMES if all(type(children.get(n)) is nn.Linear for n in s)), None)
    fused = next((n for n in FUSED_NAMES if type(children.get(n)) is nn.Linear), None)
    head_dim = next((v for n in HEAD_DIM_NAMES if isinstance(v := getattr(module, n, None), int)), None)
    if out is None or head_dim is None or (split is None and fused is None):
        return None
    o_proj = children[out]
    state: dict[str, Source] = {"o_proj.weight": Param(f"{out}.weight")}
    if split is not None:
        q, k, v = (children[n] for n in split)
        rows = [q.weight.shape[0], k.weight.shape[0], v.weight.shape[0]]
        hidden, biases = q.weight.shape[1], [p.bias is not None for p in (q, k, v)]
        state["qkv_proj.weight"] = Rows(tuple(f"{n}.weight" for n in split))
        if any(biases):
            parts = [f"{n}.bias" if b else r for n, b, r in zip(split, biases, rows, strict=True)]
            state["qkv_proj.bias"] = Rows(tuple(parts))
        inner = (*split, out)
    else:
        qkv = children[fused]  # type: ignore[index] # fused is a name here
        q_rows = o_proj.weight.shape[1]
        kv_rows, odd = divmod(qkv.weight.shape[0] - q_rows, 2)
        if odd or kv_rows <= 0:
            return None
        rows, hidden, biases = [q_rows, kv_rows, kv_rows], qkv.weight.shape[1], [qkv.bias is not None]
        state["qkv_proj.weight"] = Param(f"{fused}.weight")
        if qkv.bias is not None:
            state["qkv_proj.bias"] = Param(f"{fused}.bias")
        inner = (str(fused), out)
    if any(r % head_dim for r in rows) or rows[1] != rows[2] or o_proj.weight.shape != (hidden, rows[0]):
        return None
    if (rows[0] // head_dim) % (rows[1] // head_dim):
        return None
    scale_name = next((n for n in SCALE_NAMES if isinstance(getattr(module, n, None), float)), None)
    facts: dict[str, Any] = {
        "hidden_size": hidden,
        "num_heads": rows[0] // head_dim,
        "num_kv_heads": rows[1] // head_dim,
        "head_dim": head_dim,
        "qkv_bias": any(biases),
        "o_bias": o_proj.bias is not None,
        "scale": head_dim**-0.5 if scale_name is None else getattr(module, scale_name),
        "causal": bool(getattr(module, "is_causal", True)),
    }
    if o_proj.bias is not None:
        state["o_proj.bias"] = Param(f"{out}.bias")
    reads = ["is_causal", *([scale_name] if scale_name else [])]
    norms = next((n for n in NORM_NAMES if all(children.get(c) is not None for c in n)), None)
    if norms is not None:
        sites = [host.site(children[n], "rms_norm", "gemma_rms_norm") for n in norms]
        if sites[0] is None or sites[1] is None:
            return None
        norm_facts = sites[0].proposal.facts
        if norm_facts.get("has_weight") is False:
            return None
        full = norm_facts["hidden_size"] != head_dim or rows[0] == head_dim
        facts |= {
            "qk_norm": "full" if full and norm_facts["hidden_size"] == rows[0] else "head",
            "qk_norm_kind": sites[0].proposal.task,
            "qk_norm_eps": norm_facts["eps"],
        }
        state |= {f"{k}.weight": Param(f"{n}.weight") for k, n in zip(("q_norm", "k_norm"), norms, strict=True)}
        inner += norms
    if implementation_of(module) == "eager":  # sdpa drops both, and what the model runs is what counts
        cap = getattr(module, "attn_logit_softcapping", None)
        if cap is not None:
            facts["logits_soft_cap"] = float(cap)
        if isinstance(module._parameters.get("sinks"), nn.Parameter):
            facts["has_sinks"] = True
            state["attn.sinks"] = Param("sinks")
    return Reading(facts, state, inner, tuple(r for r in reads if r in vars(module)))


def implementation_of(module: nn.Module) -> str | None:
    """The attention implementation that the module's config names now."""
    return getattr(getattr(module, "config", None), "_attn_implementation", None)


def watched_config(module: nn.Module) -> tuple[tuple[Any, str], ...]:
    """The attribute that names the attention implementation: what an adapter read of it holds until it changes."""
    name = "_attn_implementation_internal"
    return ((module.config, name),) if name in vars(module.config) else ()


def returned_values(cls: type[nn.Module]) -> int | None:
    """How many values ``forward`` returns as a tuple; 0 for a bare tensor; None where its returns differ."""
    tree = syntax_of(cls)
    if tree is None:
        return None
    counts = {
        len(node.value.elts) if isinstance(node.value, ast.Tuple) else 0
        for node in ast.walk(tree)
        if isinstance(node, ast.Return) and node.value is not None
    }
    return counts.pop() if len(counts) == 1 else None


def leave_for(returns: int) -> Leave | None:
    """The output in the place of the tuple's first value; weights and the rest are None, as sdpa returns them."""
    if returns == 0:
        return None
    rest = (None,) * (returns - 1)
    return lambda out, call: (out, *rest)


def enter_for(module: nn.Module, names: Sequence[str], halves: Halves | None, *, causal: bool) -> Enter:
    """Reads a call of the module by its own argument names; what it cannot carry over becomes a reason."""
    eager = implementation_of(module) == "eager"
    known = frozenset({"hidden_states", "attention_mask", "past_key_values", "position_embeddings"}) | SILENT
    hooks = module._forward_hooks
    attributes = vars(module)  # nn.Module's own attribute access costs more than the look-up
    caches: set[type] = set()  # classes seen to take keys and values
    leads = names[0] == "hidden_states"
    take = None if halves is None else halves.__call__

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | str:
        if leads and len(args) == 1 and "hidden_states" not in kwargs:  # as decoder layers are called
            hidden_states = args[0]
        else:
            if args:
                kwargs = dict(zip(names, args, strict=False)) | kwargs
            hidden_states = kwargs.get("hidden_states")
        get = kwargs.get
        mask, cache = get("attention_mask"), get("past_key_values")
        if hidden_states is None or hidden_states.dim() != 3:
            return "hidden_states is not (batch, sequence, width)"
        if eager and (hooks or (mask is None and causal and hidden_states.shape[1] > 1)):
            return "eager attention with its weights hooked, or without the mask it relies on"
        if mask is not None and mask.dim() != 4:
            return f"a mask of {mask.dim()} dimensions"
        if not known.issuperset(kwargs):
            name = next((n for n in kwargs if n not in known and kwargs[n] is not None), None)
            if name is not None:
                return argument_reason(name, kwargs[name])
        cos = sin = None
        if take is not None:
            tables = get("position_embeddings")
            if tables is None:
                return "no position_embeddings"
            cos, sin = take(tables)
        if cache is None:
            return hidden_states, cos, sin, mask, None
        layer = attributes.get("layer_idx")
        if layer is None or cache.__class__ not in caches:
            if layer is None or not hasattr(cache, "layers") or hasattr(cache, "cross_attention_cache"):
                return f"a cache of class {type(cache).__name__}"
            caches.add(cache.__class__)
        update = append_maskless if mask is None and causal else append
        return hidden_states, cos, sin, mask, partial(update, cache, layer)

    return enter


def argument_reason(name: str, value: Any) -> str:
    """Why a call with an argument that the task does not have stays as it is; a tensor is not printed."""
    return f"argument {name}={value!r}" if isinstance(value, (bool, int, str)) else f"argument {name} is given"


def causal_mask(length: int, total: int, *, padding: int, like: torch.Tensor, additive: bool) -> torch.Tensor:
    """(2, 1, length, total): query i sees keys up to total - length + i, and the first row not its first
    ``padding`` keys (but always itself)."""
    queries = torch.arange(length)[:, None] + total - length
    keys = torch.arange(total)[None]
    seen = (keys <= queries).expand(2, 1, length, total).clone()
    seen[0, 0] &= (keys >= padding) | (keys == queries)
    if not additive:
        return seen.to(like.device)
    return torch.zeros(seen.shape, dtype=like.dtype).masked_fill(~seen, torch.finfo(like.dtype).min).to(like.device)


def scenarios_for(
    module: nn.Module, names: Sequence[str], table: Table | None, *, causal: bool
) -> Callable[[Draws], Iterator[Scenario]]:
    """Prefill, prefill with padding, and prefill then decode against a fresh cache."""
    width = next(p.shape[1] for n, p in module.named_parameters() if p.dim() == 2 and "o_proj" not in n)
    additive = implementation_of(module) == "eager"
    cached = "past_key_values" in names and getattr(module, "layer_idx", None) is not None

    def call(draw: Draws, first: int, length: int, *, salt: int, mask: torch.Tensor | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"hidden_states": draw.normal(2, length, width, salt=salt)}
        if table is not None:
            tables = (draw.table(t[:, first : first + length]).expand(2, -1, -1) for t in (table.cos, table.sin))
            arguments["position_embeddings"] = tuple(tables)
        if "attention_mask" in names:
            arguments["attention_mask"] = mask
        return arguments

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        like = draw.normal(1)
        plain = causal_mask(20, 20, padding=0, like=like, additive=True) if additive and causal else None
        prefill = call(draw, 0, 20, salt=1, mask=plain)
        yield lambda forward: outputs(forward(**prefill))
        if "attention_mask" in names:
            padded = causal_mask(20, 20, padding=3, like=like, additive=additive)
            masked = call(draw, 0, 20, salt=2, mask=padded)
            yield lambda forward: outputs(forward(**masked))
        if cached and causal:

            def decode(forward: Any) -> list[torch.Tensor]:
                from transformers import DynamicCache

                cache = DynamicCache()
                first = call(draw, 0, 6, salt=3, mask=_plain(6, 6))
                second = call(draw, 6, 1, salt=4, mask=_plain(1, 7))
                return [t for c in (first, second) for t in outputs(forward(**c, past_key_values=cache))]

            def _plain(length: int, total: int) -> torch.Tensor | None:
                return causal_mask(length, total, padding=0, like=like, additive=True) if additive else None

            yield decode

    return scenarios


def outputs(result: Any) -> list[torch.Tensor]:
    """The hidden states of a result, and how many values it has: 0 for a bare tensor. Attention weights, which only
    eager attention returns, are not compared."""
    if isinstance(result, torch.Tensor):
        return [result, torch.zeros(1)]
    return [result[0], torch.ones(1) * len(result)]
