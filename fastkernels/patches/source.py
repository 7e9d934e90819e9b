"""Where an interface's parameters live in a host module: the parameter itself, a view, or several as one storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import nn

from fastkernels.errors import PatchError


@dataclass(frozen=True)
class Param:
    """One parameter or buffer of the host module, by dotted name; ``transposed`` and ``rows`` give a view of it."""

    name: str
    transposed: bool = False
    rows: tuple[int, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def under(self, prefix: str) -> Param:
        return replace(self, name=join(prefix, self.name))


@dataclass(frozen=True)
class Rows:
    """Several parameters stacked along their first axis, in one storage that they are views of afterwards.

    A number instead of a name stands for that many zero rows (a key projection without bias beside ones with).
    """

    parts: tuple[str | int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p for p in self.parts if isinstance(p, str))

    def under(self, prefix: str) -> Rows:
        return Rows(tuple(p if isinstance(p, int) else join(prefix, p) for p in self.parts))


Source = Param | Rows


def join(*parts: str) -> str:
    """Dotted path of the non-empty parts.

    >>> join("model", "", "mlp")
    'model.mlp'
    """
    return ".".join(p for p in parts if p)


def locate(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that owns the dotted parameter ``name``, and the parameter's own name in it."""
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def tensor_of(module: nn.Module, name: str) -> torch.Tensor:
    """The live parameter or buffer with this dotted name."""
    owner, leaf = locate(module, name)
    value = owner._parameters.get(leaf)
    if value is None:
        value = owner._buffers.get(leaf)
    if value is None:
        raise PatchError(f"{type(module).__name__} has no parameter or buffer {name}.")
    return value


def device_of(module: nn.Module) -> torch.device:
    """Where the module's first parameter or buffer lies; the CPU for one that has neither."""
    return next((t.device for t in chain(module.parameters(), module.buffers())), torch.device("cpu"))


@contextmanager
def mode_of(*tensors: torch.Tensor) -> Iterator[None]:
    """The inference mode in which the tensors were made, whatever the caller's: a parameter that becomes an inference
    tensor can never again be saved for backward, and one that is takes no view outside."""
    with torch.inference_mode(any(t.is_inference() for t in tensors)), torch.no_grad():
        yield


def view(module: nn.Module, source: Param) -> torch.Tensor:
    """The tensor that the interface binds: the very Parameter where it is used whole, else a view of it."""
    tensor = tensor_of(module, source.name)
    if source.rows is None and not source.transposed:
        return tensor
    with mode_of(tensor):
        data = tensor.detach()
        if source.rows is not None:
            data = data[source.rows[0] : source.rows[1]]
        return nn.Parameter(data.t() if source.transposed else data, requires_grad=False)


@dataclass(frozen=True)
class Merge:
    """A merge done: the parts that became views, the storage they share, and whether it was made here."""

    parameters: tuple[nn.Parameter, ...]
    storage: nn.Parameter
    made_here: bool

    def addresses(self) -> list[tuple[nn.Parameter, int]]:
        """Each part and the address at which it lies while it is in the storage."""
        step = self.storage.stride(0) * self.storage.element_size()
        start = self.storage.data_ptr()
        return [(p, start + offset * step) for p, offset in zip(self.parameters, self.offsets, strict=True)]

    def intact(self) -> bool:
        """False once ``.to()``, ``load_state_dict(assign=True)`` or ``p.data = ...`` took a part out of the storage."""
        return all(parameter.data_ptr() == address for parameter, address in self.addresses())

    @property
    def offsets(self) -> tuple[int, ...]:
        return self.storage.__dict__["row_offsets"]  # set once by merge(); a Parameter takes attributes

    def undo(self) -> None:
        """Gives each part that is still in the storage its own again, with the present values."""
        if not self.made_here:
            return
        for parameter, address in self.addresses():
            if parameter.data_ptr() == address:
                with mode_of(parameter):
                    parameter.data = parameter.data.clone()


def merge(module: nn.Module, source: Rows) -> Merge:
    """Makes the parts of ``source`` views of one storage; Parameter objects, names and values stay.

    Raises:
        PatchError: a part shares its storage with something else, so that moving it would break that tie.
    """
    with mode_of(*(tensor_of(module, name) for name in source.names)):
        return _merge(module, source)


def _merge(module: nn.Module, source: Rows) -> Merge:
    tensors = [tensor_of(module, name) for name in source.names]
    first = tensors[0]
    offsets: list[int] = []
    total = 0
    for part in source.parts:
        if isinstance(part, str):
            offsets.append(total)
            total += tensor_of(module, part).shape[0]
        else:
            total += part
    adopted = _already_merged(tensors, offsets, total)
    if adopted is not None:
        storage = nn.Parameter(adopted, requires_grad=False)
    else:
        for name, tensor in zip(source.names, tensors, strict=True):
            if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
                raise PatchError(f"{name} shares its storage with another tensor; merging would break that tie.")
            if tensor.dtype != first.dtype or tensor.device != first.device:
                raise PatchError(f"{name} differs in dtype or device from {source.names[0]}; they cannot be merged.")
        storage = nn.Parameter(first.new_zeros(total, *first.shape[1:]).detach(), requires_grad=False)
        for tensor, offset in zip(tensors, offsets, strict=True):
            rows = storage.data[offset : offset + tensor.shape[0]]
            rows.copy_(tensor.data)
            tensor.data = rows
    storage.__dict__["row_offsets"] = tuple(offsets)
    return Merge(parameters=tuple(tensors), storage=storage, made_here=adopted is None)  # type: ignore[arg-type]


def _already_merged(tensors: list[torch.Tensor], offsets: list[int], total: int) -> torch.Tensor | None:
    """The storage in which the tensors already lie as wanted (an earlier patch merged them), or None."""
    first = tensors[0]
    step = first.stride(0) * first.element_size() if first.dim() else 0
    base = first.data_ptr() - offsets[0] * step
    whole = first.untyped_storage()
    row = first.stride(0)
    if len({t.untyped_storage().data_ptr() for t in tensors}) != 1 or first.storage_offset() < offsets[0] * row:
        return None
    if any(t.data_ptr() != base + o * step or not t.is_contiguous() for t, o in zip(tensors, offsets, strict=True)):
        return None
    start = first.storage_offset() - offsets[0] * row
    if (start + total * row) * first.element_size() > whole.nbytes():
        return None
    if sum(t.shape[0] for t in tensors) != total:  # rows between them are not known to be zero
        return None
    return first.detach().as_strided((total, *first.shape[1:]), first.stride(), start)
