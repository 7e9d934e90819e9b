"""Stacks of encoder layers: a module that holds a list of equal layers and runs them one after the other."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from fastkernels.patches.fingerprint import argument_names, built_at_return, evidence, returned_value
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Enter, Leave, Proposal
from fastkernels.patches.source import Source, join
from fastkernels.patches.transformers.attention import watched_config
from fastkernels.patches.transformers.encoder_attention import enter_for, scenarios_for
from fastkernels.patches.transformers.encoder_layer import ATTENTION
from fastkernels.patches.transformers.recorders import is_idle

KNOWN = (
    "transformers.models.bert.modeling_bert:BertEncoder",
    "transformers.models.clip.modeling_clip:CLIPEncoder",
    "transformers.models.distilbert.modeling_distilbert:Transformer",
)


def encoder_model(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Modules whose only child with parameters is a list of encoder layers of the same facts."""
    lists = {n: c for n, c in module._modules.items() if isinstance(c, nn.ModuleList)}
    names = argument_names(type(module))
    if len(lists) != 1 or module._parameters or not names or names[0] not in ("hidden_states", "inputs_embeds"):
        return
    (name, layers), others = lists.popitem(), [c for c in module._modules.values() if not isinstance(c, nn.ModuleList)]
    sites = [host.site(layer, "encoder_layer") for layer in layers]
    output = output_of(type(module))
    if output is None or not sites or any(True for c in others if c is not None for _ in c.parameters()):
        return
    facts = [dict(s.proposal.facts) for s in sites if s is not None]
    if len(facts) != len(sites) or any(f != facts[0] for f in facts):
        return
    attention = next(part for part in layers[0].modules() if host.site(part, *ATTENTION) is not None)
    state: dict[str, Source] = {}
    for i, site in enumerate(sites):
        assert site is not None
        prefix = join(name, str(i))
        state |= {f"layers.{i}.{key}": source.under(prefix) for key, source in site.proposal.state.items()}
    yield Proposal(
        task="encoder_model",
        facts={"num_layers": len(sites), "layer": facts[0]},
        state=state,
        enter=enter_stack(enter_for(attention, names)),
        leave=output,
        scenarios=scenarios_for(attention, names, facts[0]["hidden_size"]),
        evidence=evidence(type(module), KNOWN),
        inner=tuple(n for n, c in module._modules.items() if c is not None),
        parts={f"layers.{i}": join(name, str(i)) for i in range(len(sites))},
        watches=watched_config(attention),
        idle=is_idle,
        drops=True,
    )


def enter_stack(enter: Enter) -> Enter:
    """A stack's own calls: what is between its layers cannot be asked for."""

    def stack(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any] | str:
        if kwargs.get("output_hidden_states"):
            return "output_hidden_states: a stack in one piece has no hidden states between its layers"
        return enter(args, kwargs)

    return stack


@functools.cache
def output_of(cls: type[nn.Module]) -> Leave | None:
    """What ``forward`` makes of the last hidden state: itself, or the output class that its only ``return`` names."""
    value, built = returned_value(cls), built_at_return(cls)
    if isinstance(value, ast.Name):
        return lambda hidden_states, call: hidden_states
    if built is None or "last_hidden_state" not in built[1] or (isinstance(value, ast.Call) and value.args):
        return None
    output = built[0]
    return lambda hidden_states, call: output(last_hidden_state=hidden_states)
