"""Calls of a whole language model: the host's arguments to the interface's, its logits to the host's output.

Masks, tables and caches stay the host's own business: its functions are called here as its ``forward`` calls them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastkernels.patches.fingerprint import argument_names, built_at_return
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Enter, Leave
from fastkernels.patches.source import join
from fastkernels.patches.transformers.attention import argument_reason, implementation_of
from fastkernels.patches.transformers.cache import append, append_maskless
from fastkernels.patches.transformers.language_model import MASKS, LanguageModel
from fastkernels.patches.transformers.rope import Halves, halves_for, table_for
from fastkernels.tasks.L4.causal_lm import LayerUpdate

ARGUMENTS = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "inputs_embeds",
    "labels",
    "use_cache",
    "logits_to_keep",
}
ANSWERED = ARGUMENTS - {"inputs_embeds"} | {"return_dict", "cache_position"}
MASK_SWITCHES = ("is_causal", "use_bidirectional_attention")  # of a config: with either, other masks are made
RECORDED = ("output_attentions", "output_hidden_states")


class Call(Sequence[Any]):
    """Arguments of the interface, and what the host's output holds beside the logits.

    Cache, mask and tables are made when they are asked for: an identity candidate has no use for them.
    """

    def __init__(self, ids: torch.Tensor, make: Callable[[Call], tuple[Any, ...]], **asked: Any) -> None:
        self.ids, self.make, self.asked = ids, make, asked
        self.cache = asked["past_key_values"]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: Any) -> Any:
        return self.ids if index == 0 else self.make(self)[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make(self))


def output_of(cls: type[nn.Module]) -> type | None:
    """The output class with ``loss``, ``logits`` and ``past_key_values`` that ``forward`` returns, in one place."""
    built = built_at_return(cls)
    known = {"loss", "logits", "past_key_values", "hidden_states", "attentions"}
    return built[0] if built is not None and built[1] == known else None


def enter_for(module: nn.Module, names: Sequence[str], model: LanguageModel, host: Host) -> Enter:
    """Reads a call by the model's own argument names; builds mask, tables and cache as the base model does."""
    from transformers import DynamicCache

    base = module.get_submodule(model.base)
    config, globals_of_base = module.config, sys.modules[type(base).__module__]
    makers = {t: getattr(globals_of_base, MASKS[t]) for t in set(model.types)}
    rotary = None if model.rotary is None else module.get_submodule(model.rotary)
    typed = rotary is not None and "layer_type" in argument_names(type(rotary))
    halves = halves_of(module, model, host)
    embedding = module.get_submodule(model.embedding)
    eager = implementation_of(base) == "eager"
    one = len(model.types) == 1
    layer_types = getattr(config, "layer_types", None)
    frozen = None if layer_types is None else list(layer_types)

    def tables(x: torch.Tensor, positions: torch.Tensor) -> tuple[Any, Any]:
        if rotary is None:
            return None, None
        if not typed:
            pair = rotary(x, positions)
            cut = [None if h is None else h(pair) for h in halves]
        else:
            pairs = {t: rotary(x, positions, t) for t in set(model.types)}
            cut = [None if h is None else h(pairs[t]) for h, t in zip(halves, model.types, strict=True)]
        if one:
            return cut[0] or (None, None)
        return tuple(c and c[0] for c in cut), tuple(c and c[1] for c in cut)

    def make(call: Call) -> tuple[Any, ...]:
        ids, asked = call.ids, call.asked
        if call.cache is None and asked["use_cache"]:
            call.cache = DynamicCache(config=config)
        caches, positions, given = call.cache, asked["position_ids"], asked["attention_mask"]
        # Masks and tables ask a stream only for its batch, length, dtype and device.
        stream = embedding.weight.new_empty((*ids.shape, 0))
        if positions is None:
            seen = caches.get_seq_length() if caches is not None else 0
            positions = (torch.arange(ids.shape[1], device=ids.device) + seen).unsqueeze(0)
        masks = given  # generate() makes one for each type of layer itself
        if not isinstance(given, dict):
            arguments = {"config": config, "inputs_embeds": stream, "attention_mask": given}
            arguments |= {"past_key_values": caches, "position_ids": positions}
            masks = {t: maker(**arguments) for t, maker in makers.items()}
        mask = masks[model.types[0]] if one else tuple(masks[t] for t in model.types)
        update = None
        if caches is not None:
            appends = [append_maskless if masks[t] is None else append for t in model.types]
            update = updates_for(caches, [appends[kind] for kind in model.kinds])
        return (ids, *tables(stream, positions), mask, update, asked["logits_to_keep"])

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any] | str:
        if args:
            kwargs = dict(zip(names, args, strict=False)) | kwargs
        get = kwargs.get
        ids, given, caches = get("input_ids"), get("attention_mask"), get("past_key_values")
        if ids is None or ids.dim() != 2 or ids.is_floating_point():
            return "input_ids is not (batch, sequence) of integers"
        if not ANSWERED.issuperset(kwargs):
            for name in kwargs.keys() - ANSWERED:
                value = kwargs[name]
                if value is not None and not (name in RECORDED and value is False):
                    return argument_reason(name, value)
        if frozen is not None and config.layer_types != frozen:
            return "config.layer_types is another than when it was patched"
        if any(getattr(config, name, False) and get(name) is None for name in RECORDED):
            return "the config asks for attentions or hidden states of the layers"
        if isinstance(given, dict):
            reason = reason_against(given, makers.keys(), needed=eager and ids.shape[1] > 1)
            if reason is not None:
                return reason
        elif given is not None and given.dim() not in (2, 4):
            return f"a mask of {given.dim()} dimensions"
        wanted = get("use_cache")
        wanted = getattr(config, "use_cache", None) if wanted is None else wanted
        if caches is not None:
            if not wanted:
                return "a cache is given and use_cache is off"
            if not hasattr(caches, "layers") or hasattr(caches, "cross_attention_cache"):
                return f"a cache of class {type(caches).__name__}"
        return Call(
            ids,
            make,
            attention_mask=given,
            position_ids=get("position_ids"),
            past_key_values=caches,
            use_cache=wanted,
            logits_to_keep=get("logits_to_keep", 0),
            labels=get("labels"),
            return_dict=get("return_dict"),
        )

    return enter


def reason_against(masks: Mapping[str, Any], types: Iterable[str], *, needed: bool) -> str | None:
    """Why masks made elsewhere, one for each type of layer, cannot be taken over."""
    for name in types:
        if name not in masks:
            return f"no mask for {name}"
        mask = masks[name]
        if mask is None and needed:
            return "eager attention without the mask it relies on"
        if mask is not None and mask.dim() != 4:
            return f"a mask of {mask.dim()} dimensions"
    return None


def halves_of(module: nn.Module, model: LanguageModel, host: Host) -> list[Halves | None]:
    """For each kind of layer, what takes half-width tables out of the host's; None for a kind without RoPE."""
    found: list[Halves | None] = []
    for kind, facts in enumerate(model.facts):
        layer = module.get_submodule(join(model.layers, str(model.kinds.index(kind))))
        attention = next(p for p in layer.modules() if host.site(p, "attention_block") is not None)
        table = table_for(attention, host, length=24) if facts["attention"]["rotary_dim"] else None
        found.append(halves_for(table, host))
    return found


def updates_for(cache: Any, appends: Sequence[Callable[..., Any]]) -> LayerUpdate:
    """Appends one layer's keys and values, both (B, Hkv, S, D), to the host's cache, in the way of that layer."""

    def update(layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return appends[layer](cache, layer, key, value)

    return update


def leave_for(module: nn.Module, output: type) -> Leave:
    """The host's output class, with the loss where labels were given."""

    def leave(logits: torch.Tensor, call: Any) -> Any:
        loss = None
        labels, as_dict = call.asked["labels"], call.asked["return_dict"]
        if labels is not None:
            loss = module.loss_function(logits=logits, labels=labels, vocab_size=module.config.vocab_size)
        result = output(loss=loss, logits=logits, past_key_values=call.cache, hidden_states=None, attentions=None)
        return result if (module.config.return_dict if as_dict is None else as_dict) else result.to_tuple()

    return leave
