"""Appending keys and values to a transformers cache."""

from __future__ import annotations

from typing import Any

import torch


def append(cache: Any, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``cache.update``, but the first keys and values of a growing layer (both (B, Hkv, S, D)) are taken as they are.

    ``DynamicLayer.update`` concatenates them to an empty tensor, which copies both: 2% of a long prefill.
    """
    layers = cache.layers
    if layer < len(layers):
        slot = layers[layer]
        fresh = slot.__class__.__name__ == "DynamicLayer" and not slot.is_initialized
        if fresh and not getattr(cache, "offloading", False) and key.is_contiguous() and value.is_contiguous():
            slot.lazy_initialization(key, value)
            slot.keys, slot.values = key, value
            return key, value
    return cache.update(key, value, layer)


def append_maskless(
    cache: Any, layer: int, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``append`` for causal attention without a mask, which takes all keys that it is given for written ones."""
    length = key.shape[2]
    key, value = append(cache, layer, key, value)
    if length > 1 and key.shape[2] > length:
        # A static cache that was empty: the sequence stands at its start, the rest is not written yet.
        key, value = key[:, :, :length], value[:, :, :length]
    return key, value
