"""The torch profiler, in this process: kernels on CUDA, operators on the CPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from fastkernels.evaluation.e2e.launches import profiled
from fastkernels.evaluation.profile.result import KernelProfile

# On the host: calls of the runtime, and wrappers without time of their own.
HOST_ONLY = ("cuda", "cuLaunch", "Torch-Compiled Region")


def torch_profile(run: Callable[[], Any], *, calls: int, device: torch.device) -> list[KernelProfile]:
    """Kernels of a window in which ``run()`` makes ``calls`` calls, slowest first; copies and fills on the device too.

    Raises:
        EvaluationError: a profiler is running already.
    """
    return summarised(profiled(run), calls=calls, on_cpu=device.type == "cpu")


def summarised(events: list[FunctionEvent], *, calls: int, on_cpu: bool) -> list[KernelProfile]:
    """By name: launches and seconds of one call. An operator's seconds are its own, without those it calls."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if (event.device_type == DeviceType.CPU) != on_cpu or event.is_user_annotation:
            continue
        if not on_cpu:
            seconds[event.name].append(event.time_range.elapsed_us() * 1e-6)
        elif not event.name.startswith(HOST_ONLY):
            seconds[event.name].append(event.self_cpu_time_total * 1e-6)
    found = [
        KernelProfile(name=name, launches=len(each) / calls, seconds=of_one_call(each, calls))
        for name, each in seconds.items()
    ]
    return sorted(found, key=lambda k: -k.seconds)


def of_one_call(seconds: Sequence[float], calls: int) -> float:
    """Seconds of one call, given its launches' in order: the median call, or the mean where calls differ in launches.

    >>> of_one_call([1.0, 2.0, 1.0, 2.0, 9.0, 2.0], calls=3)
    3.0
    """
    each, uneven = divmod(len(seconds), calls)
    if uneven or not each:
        return fmean(seconds) * len(seconds) / calls
    return median(sum(seconds[i * each : (i + 1) * each]) for i in range(calls))
