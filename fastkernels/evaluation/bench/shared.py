"""Memory that the parent owns and a child maps: contents change behind pointers that stay the same."""

from __future__ import annotations

import inspect
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

ALIGNMENT_BYTES = 512  # of every tensor, as the CUDA caching allocator's
LEAST_BYTES = 1 << 16
Moves = list[tuple[str, int, int, int]]  # from the staging arena to the one named: byte there, byte here, how many


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lies in an arena: byte offset, and the view over it."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def span(self) -> int:
        """Elements from the first to the last, gaps included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def end(self) -> int:
        """The first aligned byte after it."""
        return aligned(self.offset + self.span * self.dtype.itemsize)


def aligned(count: int) -> int:
    """``count`` bytes, rounded up to the alignment."""
    return -(-count // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def place(tree: Any, *, start: int = 0) -> tuple[Any, int]:
    """``tree`` with each tensor replaced by its Place, one after the other from ``start``; and where the last ends."""
    end = aligned(start)

    def one(tensor: torch.Tensor) -> Place:
        nonlocal end
        stride = tensor.stride()
        if any(size > 1 and step < 0 for size, step in zip(tensor.shape, stride, strict=True)):
            stride = tensor.contiguous().stride()
        found = Place(offset=end, shape=tuple(tensor.shape), stride=tuple(stride), dtype=tensor.dtype)
        end = found.end
        return found

    return pytree.tree_map_only(torch.Tensor, one, tree), end


class Arena:
    """Bytes that two processes see: made by the parent with ``Arena.new``, by the child with ``Arena.mapped``."""

    def __init__(
        self, memory: torch.Tensor, descriptor: int | None, handle: Any, buffer: mmap.mmap | None = None
    ) -> None:
        self.memory, self.descriptor, self._handle, self.buffer = memory, descriptor, handle, buffer
        self._given: list[tuple[Any, ...]] = []

    @classmethod
    def new(cls, count: int, device: torch.device, *, pool: Any = None) -> Arena:
        """At least ``count`` bytes on ``device``. On CUDA ``pool`` (a MemPool of arenas only) keeps everything else
        of the parent's out of the segments that a child can see."""
        count = max(aligned(count), LEAST_BYTES)
        if device.type == "cuda":
            with torch.cuda.use_mem_pool(pool):
                memory = torch.zeros(count, dtype=torch.uint8, device=device)
            torch.cuda.synchronize(device)
            return cls(memory, None, None)
        descriptor = os.memfd_create("fastkernels-arena")
        os.ftruncate(descriptor, count)
        buffer = mmap.mmap(descriptor, count)
        return cls(torch.frombuffer(buffer, dtype=torch.uint8), descriptor, count, buffer)

    def handle(self) -> Any:
        """What a child maps it by; torch counts the receivers of CUDA memory, so each gets one of its own."""
        if not self.memory.is_cuda:
            return self._handle
        from torch.multiprocessing.reductions import reduce_tensor

        handle = reduce_tensor(self.memory)
        self._given.append(handle[1])
        return handle

    @classmethod
    def mapped(cls, handle: Any, descriptors: list[int]) -> Arena:
        """The child's view of what ``handle`` and the descriptor that came with it name."""
        if isinstance(handle, int):
            buffer = mmap.mmap(descriptors[0], handle)
            os.close(descriptors[0])
            return cls(torch.frombuffer(buffer, dtype=torch.uint8), None, None, buffer)
        rebuild, arguments = handle
        return cls(rebuild(*arguments), None, None)

    def view(self, where: Place) -> torch.Tensor:
        """The tensor at ``where``, over this memory; on the CPU its storage ends where the tensor does."""
        item = where.dtype.itemsize
        if not where.span:
            return torch.empty_strided(where.shape, where.stride, dtype=where.dtype, device=self.memory.device)
        if self.buffer is not None:
            flat = torch.frombuffer(self.buffer, dtype=where.dtype, count=where.span, offset=where.offset)
        else:
            flat = self.memory[where.offset : where.offset + where.span * item].view(where.dtype)
        return torch.as_strided(flat, where.shape, where.stride)

    def views(self, tree: Any) -> Any:
        """``tree`` with each Place replaced by its tensor."""
        return pytree.tree_map_only(Place, self.view, tree)

    def fill(self, byte: int) -> None:
        """Sets every byte; 255 makes each float NaN."""
        self.memory.fill_(byte)

    def write(self, places: Any, tree: Any) -> None:
        """Copies the tensors of ``tree`` to where ``places`` has theirs, with what lies between their elements."""
        for where, leaf in zip(pytree.tree_leaves(places), pytree.tree_leaves(tree), strict=True):
            if isinstance(where, Place):
                target = self.view(where)
                if where.span < target.numel():  # an expanded view: one write for each stored element
                    target = torch.as_strided(target, *_stored(where))
                    leaf = torch.as_strided(leaf, *_stored(where))
                elif where.span > target.numel() and tuple(leaf.stride()) == where.stride:
                    target, leaf = (torch.as_strided(t, (where.span,), (1,)) for t in (target, leaf))
                target.copy_(leaf)

    @property
    def size(self) -> int:
        return self.memory.numel()

    def close(self) -> list[Callable[[], None]]:
        """Lets go of the memory, which goes with the last view, here and in the children.

        Returns, for each child that was given CUDA memory, what counts it off: to be called once it has ended, for one
        that is killed counts nothing.
        """
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        given, self._given = self._given, []
        return [partial(_count_off, arguments) for arguments in given]


def _count_off(arguments: tuple[Any, ...]) -> None:
    """``arguments`` are those of torch's ``rebuild_cuda_tensor``. To count one off twice does no harm."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    told = inspect.signature(rebuild_cuda_tensor).bind(*arguments).arguments
    torch.UntypedStorage._release_ipc_counter(
        told["ref_counter_handle"], told["ref_counter_offset"], device=told["storage_device"]
    )


def _stored(where: Place) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and stride without repeated elements (axes of stride 0)."""
    return tuple(1 if step == 0 else size for size, step in zip(where.shape, where.stride, strict=True)), where.stride
