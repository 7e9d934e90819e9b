"""Encoder layers: attention, two linears with an activation, two layer norms, in BERT's or in ViT's order.

The parts are found by what they are, wherever in the layer they stand: BERT spreads them over four modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastkernels.patches.fingerprint import argument_names, evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Proposal, Site
from fastkernels.patches.source import Source
from fastkernels.patches.transformers.activation import kind_of
from fastkernels.patches.transformers.attention import leave_for, returned_values, watched_config
from fastkernels.patches.transformers.encoder_attention import enter_for, scenarios_for
from fastkernels.patches.transformers.recorders import is_idle
from fastkernels.tasks.L3.encoder_layer import WIRINGS

KNOWN = (
    "transformers.models.bert.modeling_bert:BertLayer",
    "transformers.models.clip.modeling_clip:CLIPEncoderLayer",
    "transformers.models.vit.modeling_vit:ViTLayer",
    "transformers.models.distilbert.modeling_distilbert:TransformerBlock",
)
ATTENTION = ("encoder_attention", "attention_block")
# Facts of task attention_block that make it no encoder's attention.
DECODER_FACTS = ("causal", "rotary_dim", "qk_norm", "logits_soft_cap", "has_sinks")


@dataclass(kw_only=True)
class Parts:
    """Sites inside a layer by their paths; ``acts`` are the kinds of its activations."""

    attention: dict[str, Site]
    mlps: dict[str, Site]
    linears: dict[str, Site]
    norms: dict[str, Site]
    acts: list[str]


def encoder_layer(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Both wirings are proposed, the norms in order of registration and in the reverse."""
    if not module._modules or module._parameters or getattr(module, "chunk_size_feed_forward", None):
        return
    names = argument_names(type(module))
    returns = returned_values(type(module))
    if not names or names[0] != "hidden_states" or returns is None:
        return
    parts = parts_of(module, host)
    reading = read(parts) if parts is not None else None
    if parts is None or reading is None:
        return
    facts, state, images = reading
    path, site = next(iter(parts.attention.items()))
    attention = module.get_submodule(path)
    first, second = parts.norms
    for wiring in WIRINGS:
        for order in ((first, second), (second, first)):
            norms = dict(zip(("norm1", "norm2"), order, strict=True))
            own: dict[str, Source] = {}
            for image, name in norms.items():
                own |= _under(image, parts.norms[name], name)
            yield Proposal(
                task="encoder_layer",
                facts=dict(facts) | {"wiring": wiring},
                state=dict(state) | own,
                enter=enter_for(attention, names),
                leave=leave_for(returns),
                scenarios=scenarios_for(attention, names, site.proposal.facts["hidden_size"]),
                evidence=evidence(type(module), KNOWN),
                inner=tuple(n for n, c in module._modules.items() if c is not None),
                parts=dict(images) | norms,
                reads=tuple(n for n in vars(module) if n == "chunk_size_feed_forward"),
                watches=watched_config(attention),
                idle=is_idle,
                drops=True,
            )


def parts_of(module: nn.Module, host: Host) -> Parts | None:
    """The sites that make up a layer, none of them inside another; None where anything else has parameters."""
    parts = Parts(attention={}, mlps={}, linears={}, norms={}, acts=[])

    def walk(part: nn.Module, path: str) -> bool:
        for kept, tasks in (
            (parts.attention, ATTENTION),
            (parts.mlps, ("mlp",)),
            (parts.norms, ("layer_norm",)),
            (parts.linears, ("linear",)),
        ):
            site = host.site(part, *tasks) if path else None
            if site is not None:
                kept[path] = site
                return True
        kind = kind_of(part)
        if kind is not None:
            parts.acts.append(kind)
        if part._parameters or part._buffers:
            return False
        return all(
            walk(child, f"{path}.{name}" if path else name)
            for name, child in part._modules.items()
            if child is not None
        )

    complete = walk(module, "")
    return parts if complete and len(parts.attention) == 1 and len(parts.norms) == 2 else None


def read(parts: Parts) -> tuple[Mapping[str, Any], Mapping[str, Source], Mapping[str, str]] | None:
    """Facts, state and images of the parts but the norms, or None where they do not make a layer."""
    (path, attention), linears = next(iter(parts.attention.items())), dict(parts.linears)
    facts, norms = attention.proposal.facts, [s.proposal.facts for s in parts.norms.values()]
    hidden, width = facts["hidden_size"], facts["num_heads"] * facts["head_dim"]
    if norms[0] != norms[1] or not (norms[0]["weight"] and norms[0]["bias"]) or norms[0]["hidden_size"] != hidden:
        return None
    state = _under("self_attn", attention, path)
    images: dict[str, str] = {}
    if attention.proposal.task == "attention_block":
        if any(facts.get(n) for n in DECODER_FACTS) or facts["num_kv_heads"] != facts["num_heads"]:
            return None
        o_bias = facts["o_bias"]
        images["self_attn"] = path
    else:
        # The output projection comes next to the attention, before those of the MLP.
        name = next((n for n in linears if _sizes(linears[n]) == (width, hidden)), None)
        if name is None:
            return None
        output = linears.pop(name)
        o_bias = output.proposal.facts["bias"]
        state |= _under("self_attn.o_proj", output, name)
    if len(parts.mlps) == 1 and not linears:
        name, site = next(iter(parts.mlps.items()))
        mlp: Mapping[str, Any] = site.proposal.facts
        state |= _under("mlp", site, name)
        images["mlp"] = name
    elif not parts.mlps and len(linears) == 2 and len(set(parts.acts)) == 1:
        up, down = linears
        if _sizes(linears[up])[0] != hidden or _sizes(linears[up]) != _sizes(linears[down])[::-1]:
            up, down = down, up
        bias = {s.proposal.facts["bias"] for s in linears.values()}
        if _sizes(linears[up])[0] != hidden or _sizes(linears[up]) != _sizes(linears[down])[::-1] or len(bias) != 1:
            return None
        mlp = {"intermediate_size": _sizes(linears[up])[1], "hidden_act": parts.acts[0], "bias": bias.pop()}
        state |= _under("mlp.fc1", linears[up], up) | _under("mlp.fc2", linears[down], down)
    else:
        return None
    shared = {n: facts[n] for n in ("hidden_size", "num_heads", "head_dim", "qkv_bias", "scale")}
    return (
        shared
        | {
            "o_bias": o_bias,
            "intermediate_size": mlp["intermediate_size"],
            "hidden_act": mlp["hidden_act"],
            "mlp_bias": mlp["bias"],
            "eps": norms[0]["eps"],
        },
        state,
        images,
    )


def _under(image: str, site: Site, path: str) -> dict[str, Source]:
    return {f"{image}.{key}": source.under(path) for key, source in site.proposal.state.items()}


def _sizes(site: Site) -> tuple[int, int]:
    return site.proposal.facts["input_size"], site.proposal.facts["output_size"]
