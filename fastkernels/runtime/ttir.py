"""A Triton kernel in a graph is compiled to Triton's IR once for each kind of arguments, not at each of its calls.

Torch asks what a kernel writes to by compiling it, four times a call: 12 of 33 seconds for Llama-3.1-8B's 289 calls
of 9 kernels (torch 2.11, H200). Tensors count by their dtype there, and sizes without a value all alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def ttir_made_once() -> Iterator[None]:
    """Meanwhile torch's analysis of equal calls of one kernel shares its IR, which it only reads."""
    from torch._higher_order_ops import triton_kernel_wrap

    with patch.object(triton_kernel_wrap, "generate_ttir", once_for_equals(triton_kernel_wrap.generate_ttir)):
        yield


def once_for_equals(generate: Callable[..., Any]) -> Callable[..., Any]:
    """``generate(kernel, kwargs, tma_descriptor_metadata)`` with its results kept, but for kernels that take
    descriptors and for values that cannot be compared."""
    made: dict[Any, Any] = {}

    @functools.wraps(generate)
    def kept(kernel: Any, kwargs: dict[str, Any], tma_descriptor_metadata: Any) -> Any:
        # Dynamo wraps each call that says num_warps in an autotuner of its own; the first configuration stands for all.
        tuner = kernel if hasattr(kernel, "configs") else None
        function = kernel if tuner is None else tuner.fn
        given = kwargs if tuner is None or not tuner.configs else kwargs | tuner.configs[0].kwargs
        if tma_descriptor_metadata or not hasattr(function, "arg_names"):
            return generate(kernel, kwargs, tma_descriptor_metadata)
        key = (function, *((name, *_kind(given[name])) for name in sorted(given)))
        try:
            known = key in made
        except TypeError:  # a value without a hash
            return generate(kernel, kwargs, tma_descriptor_metadata)
        if not known:
            made[key] = generate(kernel, kwargs, tma_descriptor_metadata)
        if given is kwargs:
            for option in kwargs.keys() - set(function.arg_names):  # num_warps and such: ``generate`` takes them out
                del kwargs[option]
        return made[key]

    return kept


def _kind(value: Any) -> tuple[Any, ...]:
    """What Triton's IR depends on of one argument: the dtype of tensors, and the value of all else."""
    import sympy
    from torch._inductor.ir import TensorBox

    if isinstance(value, (torch.Tensor, TensorBox)):
        return ("tensor", getattr(value, "dtype", None))
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, sympy.Expr)):
        return ("symbol",)
    return (type(value), value)
