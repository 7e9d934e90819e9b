"""The parts of a causal language model (base with embedding, layers, last norm and RoPE; head), by what they are."""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastkernels.patches.fingerprint import syntax_of
from fastkernels.patches.recognise import Host
from fastkernels.patches.source import join
from fastkernels.patches.stand_in import first_rows, stand_in
from fastkernels.patches.transformers.attention import implementation_of
from fastkernels.patches.transformers.rope import is_rotary

# The function of transformers.masking_utils that makes the mask of each type of layer.
MASKS = {"full_attention": "create_causal_mask", "sliding_attention": "create_sliding_window_causal_mask"}
NORMS = ("rms_norm", "gemma_rms_norm", "layer_norm")
PROBED_ROWS = 512  # of the vocabulary: logits of further rows are computed like these
PROBED_LAYERS = 8  # at most; kinds of layers repeat well before


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """Dotted names of the parts, and the layers' kinds: which mask and tables they get, and their facts.

    ``kinds`` gives each layer's index into ``types`` and ``facts``.
    """

    base: str
    embedding: str
    layers: str
    norm: str
    head: str
    rotary: str | None
    kinds: tuple[int, ...]
    types: tuple[str, ...]
    facts: tuple[Mapping[str, Any], ...]


def read(module: nn.Module, host: Host) -> LanguageModel | None:
    """The parts of ``module``, or None where it has others, or its layers are not all sites of ``decoder_layer``."""
    children = {n: c for n, c in module._modules.items() if c is not None}
    bases = [n for n, c in children.items() if any(isinstance(g, nn.ModuleList) for g in c._modules.values())]
    heads = [n for n, c in children.items() if host.site(c, "linear") is not None]
    if len(bases) != 1 or len(heads) != 1 or len(children) != 2 or module._parameters:
        return None
    base, config = children[bases[0]], getattr(module, "config", None)
    if base._parameters or implementation_of(base) is None or getattr(base, "config", None) is not config:
        return None
    parts = parts_of(base, host)
    if parts is None:
        return None
    layers = base._modules[parts["layers"]]
    assert isinstance(layers, nn.ModuleList)
    sites = [host.site(layer, "decoder_layer") for layer in layers]
    types = layer_types(base, len(sites))
    # A config that says is_causal makes the base model build other masks.
    if types is None or not sites or len(sites) != config.num_hidden_layers:
        return None
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", None):
        return None
    found: list[tuple[str, Mapping[str, Any]]] = []
    kinds = []
    for type_of, site in zip(types, sites, strict=True):
        if site is None or not site.proposal.facts["attention"]["causal"]:
            return None
        kind = (type_of, dict(site.proposal.facts))
        if kind not in found:
            found.append(kind)
        kinds.append(found.index(kind))
    if "rotary" not in parts and any(facts["attention"]["rotary_dim"] for _, facts in found):
        return None
    names = {kind: join(bases[0], name) for kind, name in parts.items()}
    return LanguageModel(
        base=bases[0],
        embedding=names["embedding"],
        layers=names["layers"],
        norm=names["norm"],
        head=heads[0],
        rotary=names.get("rotary"),
        kinds=tuple(kinds),
        types=tuple(t for t, _ in found),
        facts=tuple(f for _, f in found),
    )


def parts_of(base: nn.Module, host: Host) -> dict[str, str] | None:
    """Names of the base model's layers, embedding, norm and rotary module; None where one is missing or doubled, or
    where anything else has parameters."""
    parts: dict[str, str] = {}
    for name, child in base._modules.items():
        if isinstance(child, nn.ModuleList):
            kind = "layers"
        elif isinstance(child, nn.Embedding):
            kind = "embedding"
        elif child is not None and is_rotary(child):
            kind = "rotary"
        elif host.site(child, *NORMS) is not None:
            kind = "norm"
        elif child is not None and next(child.parameters(), None) is not None:
            return None
        else:
            continue
        if kind in parts:
            return None
        parts[kind] = name
    return parts if {"layers", "embedding", "norm"} <= parts.keys() else None


def layer_types(base: nn.Module, count: int) -> tuple[str, ...] | None:
    """The type of mask that each layer gets, read from what ``forward`` of the base model names and its config says."""
    tree = syntax_of(type(base))
    if tree is None:
        return None
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    if MASKS["full_attention"] not in names:
        return None
    types = getattr(base.config, "layer_types", None)
    if "layer_types" in attributes and types is not None:
        own = tuple(types[:count])
        return own if len(own) == count and set(own) <= MASKS.keys() else None
    slides = MASKS["sliding_attention"] in names and getattr(base.config, "sliding_window", None) is not None
    return ("sliding_attention" if slides else "full_attention",) * count


def smaller(module: nn.Module, model: LanguageModel) -> nn.Module:
    """A stand-in with the first layers only, every kind among them, and the first rows of embedding and head.

    A sliding window shrinks too, to fewer positions than a probe has.
    """
    small = stand_in(module)
    count = min(len(model.kinds), max(2, *(model.kinds.index(k) + 1 for k in range(len(model.types)))))
    config: Any = copy.deepcopy(module.config)
    config.num_hidden_layers, config.vocab_size = count, min(config.vocab_size, PROBED_ROWS)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = list(config.layer_types[:count])
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = min(config.sliding_window, 7)
    base = small.get_submodule(model.base)
    small.config = base.config = config
    layers = small.get_submodule(model.layers)
    layers._modules = dict(list(layers._modules.items())[:count])
    embedding, head = small.get_submodule(model.embedding), small.get_submodule(model.head)
    for part in (embedding, head):
        first_rows(part, config.vocab_size)
    embedding.padding_idx = None  # only gradients know it
    return small
