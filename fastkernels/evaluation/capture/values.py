"""Values of captured calls: one copy of each content, few of each kind of call, never more bytes than allowed."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from fastkernels.evaluation.capture.record import Sample
from fastkernels.evaluation.whole_file import whole_file

FILE = "values.safetensors"


@dataclass(kw_only=True)
class _Bucket:
    """A reservoir: each of the ``seen`` calls of one kind is among ``kept`` with the same probability."""

    seen: int = 0
    kept: list[Sample] = field(default_factory=list)


class ValueStore:
    """Tensors by content, and the samples that hold them.

    Args:
        per_kind: samples of each kind of call; None for all of them.
        max_bytes: of all tensors together.
    """

    def __init__(self, *, per_kind: int | None, max_bytes: int, seed: int) -> None:
        self.per_kind, self.max_bytes = per_kind, max_bytes
        self.bytes, self.dropped = 0, 0
        self._random = random.Random(seed)
        self._tensors: dict[str, torch.Tensor] = {}
        self._uses: dict[str, int] = defaultdict(int)
        self._buckets: dict[Hashable, _Bucket] = {}

    def place(self, kind: Hashable) -> int | None:
        """Where the next call of a kind would be kept, or None: it is not to be copied at all."""
        bucket = self._buckets.setdefault(kind, _Bucket())
        bucket.seen += 1
        if self.per_kind is None or len(bucket.kept) < self.per_kind:
            return len(bucket.kept)
        at = self._random.randrange(bucket.seen)
        return at if at < self.per_kind else None

    def keep(self, kind: Hashable, at: int, sample: Sample, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies a call's tensors to the host. Where there is no room, kinds with more make it, or it is dropped."""
        bucket = self._buckets[kind]
        copies = {name: host_copy(tensor) for name, tensor in tensors.items()}
        keys = {name: content_of(tensor) for name, tensor in copies.items()}
        contents = {keys[name]: copy for name, copy in copies.items()}
        if sum(map(nbytes, contents.values())) > self.max_bytes:  # for it alone there is no room
            self.dropped += 1
            return
        former = bucket.kept.pop(at) if at < len(bucket.kept) else None
        if former is not None:
            held = {key: self._tensors[key] for key in former.values.values()}
            self._release(former)
        while self._lacks(contents) and self._evict(than=len(bucket.kept) + 1):
            pass
        if self._lacks(contents):
            self.dropped += 1
            if former is not None:  # its place stays its own
                self._hold(held)
                for key in former.values.values():
                    self._uses[key] += 1
                bucket.kept.insert(at, former)
            return
        self._hold(contents)
        for key in keys.values():
            self._uses[key] += 1
        bucket.kept.append(sample.model_copy(update={"values": keys}))

    def samples(self) -> list[Sample]:
        """What is kept, kind by kind."""
        return [sample for bucket in self._buckets.values() for sample in bucket.kept]

    def write(self, folder: Path) -> bool:
        """Writes ``values.safetensors``, where there are any, and says whether there are."""
        if self._tensors:
            with whole_file(folder / FILE) as path:
                save_file(self._tensors, path)
        return bool(self._tensors)

    def _lacks(self, contents: Mapping[str, torch.Tensor]) -> bool:
        fresh = sum(nbytes(tensor) for key, tensor in contents.items() if key not in self._tensors)
        return self.bytes + fresh > self.max_bytes

    def _evict(self, *, than: int) -> bool:
        """Takes a sample from the kind that holds the most, if that is more than ``than``."""
        fullest = max(self._buckets.values(), key=lambda b: len(b.kept))
        if len(fullest.kept) <= than:
            return False
        self._release(fullest.kept.pop(self._random.randrange(len(fullest.kept))))
        self.dropped += 1
        return True

    def _hold(self, contents: Mapping[str, torch.Tensor]) -> None:
        for key, tensor in contents.items():
            if key not in self._tensors:
                self._tensors[key] = tensor
                self.bytes += nbytes(tensor)

    def _release(self, sample: Sample) -> None:
        for key in sample.values.values():
            self._uses[key] -= 1
            if not self._uses[key]:
                self.bytes -= nbytes(self._tensors.pop(key))
                del self._uses[key]


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU that shares memory with nothing."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def content_of(tensor: torch.Tensor) -> str:
    """Hash of dtype, shape and bytes of a contiguous tensor on the CPU.

    >>> zeros = content_of(torch.zeros(2))
    >>> zeros == content_of(torch.zeros(2)), zeros == content_of(torch.ones(2))
    (True, False)
    """
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:24]
