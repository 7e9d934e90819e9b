"""Layers of SGLang's models without their constructors: a class of the engine's that holds what a test gives it."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.sglang.bypass import walked_around

HEAD = 32


def class_of(name):
    """A class of the engine's models; skips where this version, or this machine, does not have it."""
    module, _, cls = name.partition(":")
    try:
        return getattr(importlib.import_module(f"sglang.srt.models.{module}"), cls)
    except (ImportError, AttributeError) as error:
        pytest.skip(f"{name}: {error}")


def holding(name, children, **own):
    """An instance of a class of the engine's models that holds ``children`` and knows ``own``: what the rules read."""
    module = object.__new__(class_of(name))
    nn.Module.__init__(module)
    for child, value in children.items():
        module.add_module(child, value)
    vars(module).update(own)
    return module


def norm(**options):
    from sglang.srt.layers.layernorm import RMSNorm

    return RMSNorm(HEAD, **options)


def rope(dim=HEAD):
    from sglang.srt.layers.rotary_embedding import RotaryEmbedding

    return RotaryEmbedding(HEAD, dim, 64, 10000, True, torch.float32)


class Model(nn.Module):
    """A stack of one layer of the engine's, in bfloat16."""

    def __init__(self, layer, architecture="Any"):
        super().__init__()
        self.embed = nn.Embedding(2, 2, dtype=torch.bfloat16)
        self.layer = layer
        self.config = SimpleNamespace(architectures=[architecture])


def reasons(layer, **options):
    host = Host(model=Model(layer, **options))
    return {name: walked_around(child, host) for name, child in layer.named_children()}
