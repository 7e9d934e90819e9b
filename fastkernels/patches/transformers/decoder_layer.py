"""Decoder layers: one attention block, one feed-forward and one to four norms, wired as the probe finds."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fastkernels.patches.fingerprint import argument_names, evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Proposal, Site
from fastkernels.patches.source import Source
from fastkernels.patches.transformers.attention import (
    enter_for,
    leave_for,
    returned_values,
    scenarios_for,
    watched_config,
)
from fastkernels.patches.transformers.recorders import is_idle
from fastkernels.patches.transformers.rope import halves_for, table_for
from fastkernels.tasks.L3.decoder_layer import WIRINGS, fused_norms

KNOWN = (
    "transformers.models.llama.modeling_llama:LlamaDecoderLayer",
    "transformers.models.gemma2.modeling_gemma2:Gemma2DecoderLayer",
    "transformers.models.olmo2.modeling_olmo2:Olmo2DecoderLayer",
    "transformers.models.phi.modeling_phi:PhiDecoderLayer",
)


def decoder_layer(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Every wiring that the number of norms allows; norms in the order of their registration, or of known names."""
    if host.site(module, "encoder_layer") is not None:
        return
    found = {name: _site(child, host) for name, child in module._modules.items()}
    attention = [n for n, s in found.items() if s is not None and s.task.name == "attention_block"]
    mlps = [n for n, s in found.items() if s is not None and s.task.name in ("gated_mlp", "mlp")]
    norms = [n for n, s in found.items() if s is not None and s.task.family == "norm"]
    rest = [module._modules[n] for n, s in found.items() if s is None]
    if len(attention) != 1 or len(mlps) != 1 or module._parameters:
        return
    if any(r is not None and next(r.parameters(), None) is not None for r in rest):
        return
    kinds = {(s.proposal.task, tuple(s.proposal.facts.items())) for n in norms if (s := found[n]) is not None}
    names = argument_names(type(module))
    returns = returned_values(type(module))
    if len(kinds) != 1 or returns is None or not names or names[0] != "hidden_states":
        return
    block = module._modules[attention[0]]
    attention_site, mlp_site = found[attention[0]], found[mlps[0]]
    assert block is not None and attention_site is not None and mlp_site is not None
    takes_tables = "position_embeddings" in names
    table = table_for(block, host, length=24) if takes_tables else None
    if bool(attention_site.proposal.facts["rotary_dim"]) != (table is not None):
        return
    norm_task, norm_facts = kinds.pop()
    causal = attention_site.proposal.facts["causal"]
    for wiring, wanted in WIRINGS.items():
        if len(wanted) != len(norms):
            continue
        order = wanted if set(wanted) == set(norms) else tuple(norms)
        parts = {"self_attn": attention[0], "mlp": mlps[0]} | dict(zip(wanted, order, strict=True))
        fused = fused_norms(wiring, norm_task, dict(norm_facts))
        state: dict[str, Source] = {}
        for image, name in parts.items():
            site = found[name]
            assert site is not None
            prefix = f"{image}.norm" if image in fused else image
            state |= {f"{prefix}.{key}": source.under(name) for key, source in site.proposal.state.items()}
        yield Proposal(
            task="decoder_layer",
            facts={
                "attention": attention_site.proposal.facts,
                "mlp": mlp_site.proposal.facts,
                "norm": dict(norm_facts),
                "mlp_task": mlp_site.proposal.task,
                "norm_task": norm_task,
                "wiring": wiring,
            },
            state=state,
            enter=enter_for(block, names, halves_for(table, host), causal=causal),
            leave=leave_for(returns),
            scenarios=scenarios_for(block, names, table, causal=causal),
            evidence=evidence(type(module), KNOWN),
            inner=tuple(module._modules),
            parts=parts,
            watches=watched_config(block),
            idle=is_idle,
            drops=True,
        )


def _site(child: nn.Module | None, host: Host) -> Site | None:
    return host.site(
        child, "attention_block", "gated_mlp", "mlp", "rms_norm", "gemma_rms_norm", "layer_norm", "fused_add_rms_norm"
    )
