"""The arguments of timed calls: one slot for each call of a batch, its contents new in every batch.

No slot is used twice in a batch, so that there is nothing a cache of results could be asked for twice."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fastkernels.evaluation.bench.inputs import clone
from fastkernels.evaluation.bench.shared import Arena, Place, aligned, place
from fastkernels.evaluation.bench.site import DRAWS, JITTER, Site
from fastkernels.tasks.tensors import tensors

MOST_RENEWED_BYTES = 1 << 28  # in one step: what that takes of other memory is several times as much
MOST_REDRAWN_BYTES = 1 << 20  # of arguments with integers, which are drawn anew for every batch


class Ring:
    """``slots`` copies of a case's arguments in shared memory, tensor by tensor: one operation renews all slots."""

    def __init__(self, site: Site, slots: int) -> None:
        self.site, self.slots = site, slots
        self._generator = torch.Generator(device=site.device).manual_seed(secrets.randbits(62))
        self._single, size = place(site.draws[0])
        self._first = [p for p in pytree.tree_leaves(self._single) if isinstance(p, Place)]
        self._step = max(1, MOST_RENEWED_BYTES // max(size, 1))
        self._bases = self._based(site.draws)
        floats = [p for p in self._first if p.dtype.is_floating_point and p.shape]
        # Rows that go with rows of numbers, or all there is: other integers (offsets, tables) mean what they are.
        self._rows = {p.shape[0] for p in floats or self._first if p.shape}
        self._redrawn = len(floats) < len(self._first) and size <= MOST_REDRAWN_BYTES
        self.blocks, end = self.laid(slots)
        self.arena = site.memory.arena("inputs", end)
        self.places = [self.slot(self.blocks, i) for i in range(slots)]
        self.renew()

    @staticmethod
    def bytes_of_slot(site: Site) -> int:
        """Shared memory that one slot takes."""
        return place(site.draws[0])[1]

    def laid(self, slots: int, start: int = 0) -> tuple[list[Place], int]:
        """Where so many slots lie from the byte ``start`` on: a block for each tensor, as (slots, elements); and the
        byte after them."""
        blocks = []
        for where in self._first:
            step = max(aligned(where.span * where.dtype.itemsize), 1) // where.dtype.itemsize
            blocks.append(Place(offset=start, shape=(slots, where.span), stride=(step, 1), dtype=where.dtype))
            start = aligned(start + slots * step * where.dtype.itemsize)
        return blocks, start

    def slot(self, blocks: list[Place], index: int) -> Any:
        """The places of one slot's arguments in such blocks."""
        counter = iter(blocks)

        def one(where: Place) -> Place:
            return replace(where, offset=row(next(counter), index))

        return pytree.tree_map_only(Place, one, self._single)

    def renew(self, *, first: int | None = None, but: int | None = None) -> None:
        """New contents in every slot or the ``first`` so many, or in all ``but`` one: a draw of the case, each float
        moved, rows of integers in another order."""
        self.fill(self.arena, self.blocks, self.slots if first is None else min(first, self.slots), but=but)

    def fill(self, arena: Arena, blocks: list[Place], slots: int, *, but: int | None = None) -> None:
        """New contents in the first so many slots of such blocks, or in all ``but`` one."""
        if self._redrawn:
            self._bases = self._based(self.site.drawn())
        for start in range(0, slots, self._step):
            end = min(start + self._step, slots)
            inside = but is not None and start <= but < end
            parts = [(start, but), (but + 1, end)] if inside and but is not None else [(start, end)]
            for block, values in zip(blocks, self._values(end - start), strict=True):
                for low, high in parts if values.numel() else ():
                    arena.view(block)[low:high].copy_(values[low - start : high - start])

    def _values(self, count: int) -> list[torch.Tensor]:
        """Contents of so many slots, tensor by tensor, (count, span)."""
        pick = torch.randint(DRAWS, (count,), generator=self._generator, device=self.site.device)
        orders: dict[int, torch.Tensor] = {}
        found = []
        for where, base in zip(self._first, self._bases, strict=True):
            values = base[pick]
            if base.is_floating_point():
                noise = torch.empty(values.shape, device=values.device).uniform_(*JITTER, generator=self._generator)
                values = (values * noise).to(base.dtype)
            elif base.dtype != torch.bool and where.shape and where.shape[0] in self._rows and 0 not in where.stride:
                rows = where.shape[0]
                if rows not in orders:
                    orders[rows] = torch.rand(
                        (count, rows), generator=self._generator, device=self.site.device
                    ).argsort(dim=1)
                order = orders[rows]
                values = _reordered(values, where, order) if base.numel() else values
            found.append(values)
        return found

    def _based(self, draws: list[Any]) -> list[torch.Tensor]:
        return [torch.stack([_stored(d, i, where) for d in draws]) for i, where in enumerate(self._first)]

    def contents(self, slot: int) -> Any:
        """A copy of one slot's arguments (packed)."""
        return clone(self.arena.views(self.places[slot]))

    def some(self) -> list[Any]:
        """The contents of a few slots."""
        return [self.contents(slot) for slot in range(min(self.slots, DRAWS))]

    def scribble(self, slot: int | None = None) -> None:
        """Makes every input, or those of one slot, useless: what was not computed by now can no longer be computed."""
        leaves = self.blocks if slot is None else pytree.tree_leaves(self.places[slot])
        for where in (leaf for leaf in leaves if isinstance(leaf, Place)):
            stored = where if slot is None else replace(where, shape=(where.span,), stride=(1,))
            self.arena.view(stored).fill_(float("nan") if where.dtype.is_floating_point else 0)

    def write(self, slot: int, contents: Any) -> None:
        """Gives one slot the ``contents`` of another."""
        self.arena.write(self.places[slot], contents)


def row(block: Place, index: int) -> int:
    """The byte where a slot's tensor starts in its block."""
    return block.offset + index * block.stride[0] * block.dtype.itemsize


def _stored(draw: Any, index: int, where: Place) -> torch.Tensor:
    """The elements of one tensor of a draw as they lie in memory, gaps included, (span,)."""
    tensor = tensors(draw)[index]
    flat = torch.zeros(where.span, dtype=where.dtype, device=tensor.device)
    if where.span:
        stride = where.stride
        once = tuple(1 if step == 0 else size for size, step in zip(where.shape, stride, strict=True))
        torch.as_strided(flat, once, stride).copy_(torch.as_strided(tensor, once, tensor.stride()))
    return flat


def _reordered(values: torch.Tensor, where: Place, order: torch.Tensor) -> torch.Tensor:
    """Each slot's rows in an order of its own; ``values`` (slots, span) as they lie in memory."""
    found = values.clone()
    strided = (len(values), *where.shape), (where.span, *where.stride)
    rows = torch.as_strided(values, *strided)
    torch.as_strided(found, *strided).copy_(rows[torch.arange(len(values), device=values.device)[:, None], order])
    return found
