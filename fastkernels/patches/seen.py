"""What a profile shows by name: device kernels, this library's operators, and the compiled graphs that ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch.autograd.profiler_util import FunctionEvent

NAMESPACE = "fastkernels::"
REGION = "Torch-Compiled Region: "  # how a profiler shows a call of what Dynamo compiled; its id follows


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Names in a profile, with counts; ``regions`` are ids of what Dynamo compiled, such as ``0/1``."""

    device: Counter[str]
    ops: Counter[str]
    regions: frozenset[str]

    @classmethod
    def of(cls, events: Iterable[FunctionEvent]) -> Self:
        device: Counter[str] = Counter()
        ops: Counter[str] = Counter()
        regions = set()
        for event in events:
            if event.device_type != torch.autograd.DeviceType.CPU:
                if not event.is_user_annotation:
                    device[event.name] += 1
            elif event.name.startswith(REGION):
                regions.add(event.name.removeprefix(REGION))
            elif event.name.startswith(NAMESPACE) and not event.is_user_annotation:
                ops[event.name] += 1
        return cls(device=device, ops=ops, regions=frozenset(regions))
