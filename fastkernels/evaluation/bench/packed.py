"""Arguments that are callables, as tensors and a class: what another process, or another dtype, can be given."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree


class PackedModule(NamedTuple):
    """A module without parameters that was passed as an argument: its class and its attributes, tensors among them.

    A named tuple, so that ``torch.utils._pytree`` walks into it.
    """

    cls: type[nn.Module]
    names: tuple[str, ...]
    values: tuple[Any, ...]


def pack(arguments: Any) -> Any:
    """The arguments with each module in them as a ``PackedModule``; the rest as it is.

    >>> from fastkernels.tasks.L2.served_attention import CachedAttention
    >>> attend = CachedAttention(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))
    >>> [leaf.shape for leaf in pytree.tree_leaves(pack((1, attend))) if isinstance(leaf, torch.Tensor)]
    [torch.Size([2, 1, 4]), torch.Size([2, 1, 4])]
    >>> type(unpack(pack((1, attend)))[1]).__name__
    'CachedAttention'
    """
    return pytree.tree_map_only(nn.Module, _pack, arguments)


def unpack(packed: Any) -> Any:
    """The inverse of ``pack``: a new module over the packed tensors themselves."""
    return pytree.tree_map_only(PackedModule, _unpack, packed, is_leaf=lambda x: isinstance(x, PackedModule))


def unpackable(packed: Any) -> str | None:
    """Why another process cannot be given these (packed) arguments, or None."""
    for leaf in pytree.tree_leaves(packed):
        if isinstance(leaf, torch.Tensor):
            continue
        if isinstance(leaf, nn.Module):
            return f"the argument {type(leaf).__name__} has parameters or parts of its own"
        try:
            pickle.dumps(leaf)
        except (pickle.PicklingError, AttributeError, TypeError):
            return f"an argument is {getattr(leaf, '__qualname__', leaf)!r}, which no other process can be given"
    return None


def _pack(module: nn.Module) -> PackedModule | nn.Module:
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()) or any(module.children()):
        return module
    own = {name: value for name, value in vars(module).items() if name not in vars(nn.Module())}
    return PackedModule(type(module), tuple(own), tuple(own.values()))


def _unpack(packed: PackedModule) -> nn.Module:
    module = packed.cls.__new__(packed.cls)
    nn.Module.__init__(module)
    for name, value in zip(packed.names, packed.values, strict=True):
        setattr(module, name, value)
    return module
