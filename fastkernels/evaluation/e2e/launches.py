"""How many launches a forward call costs: in eager decode the host, which makes them one by one, is the bound."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import _profiler_enabled
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from fastkernels.errors import EvaluationError
from fastkernels.patches.seen import Seen

# Calls of CUDA's runtime or driver that start kernels: one kernel, a cooperative one, or a whole graph.
LAUNCH = re.compile(r"cu(da)?(Launch(Cooperative)?Kernel(Ex|ExC)?|GraphLaunch)(_\w+)?")
NO_KERNEL = ("Memcpy", "Memset")  # how a profiler's names of copies and fills on the device begin


@dataclass(frozen=True, kw_only=True)
class Launches:
    """For one forward call: launches made by the host, of which a CUDA graph is one, and kernels run by the device."""

    host: float
    kernels: float


def launches_per_step(run: Callable[[], Any], steps: int) -> Launches | None:
    """What ``run``, which makes ``steps`` forward calls, launches for one of them; None where there is no GPU.

    Everything is compiled, and captured, before: what compiles or captures meanwhile is counted too.

    Raises:
        EvaluationError: a profiler is running already, or ``steps`` is not positive.
    """
    if steps < 1:
        raise EvaluationError(f"launches: run() made {steps} forward calls; there is nothing to divide by.")
    if not torch.cuda.is_available():
        return None
    return count_launches(profiled(run), steps)


def profiled(run: Callable[[], Any]) -> list[FunctionEvent]:
    """The events of a profiler window around ``run()``, the device's included.

    Raises:
        EvaluationError: a profiler is running already; torch has one at a time.
    """
    if _profiler_enabled():
        raise EvaluationError("a profiler is running already, and torch has one at a time. End it first.")
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()  # what was launched before does not belong to the window
    with profile(
        activities=activities, acc_events=True
    ) as window:  # else torch 2.11 warns of cycles, of which this is one
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return list(window.events() or ())


def count_launches(events: list[FunctionEvent], steps: int) -> Launches:
    """Of a window of ``steps`` forward calls. A launch that runtime and driver both show has one correlation id."""
    host = {event.id for event in events if is_launch(event)}
    kernels = sum(n for name, n in Seen.of(events).device.items() if not name.startswith(NO_KERNEL))
    return Launches(host=len(host) / steps, kernels=kernels / steps)


def is_launch(event: FunctionEvent) -> bool:
    """Whether the event is a call, on the host, that starts a kernel or a graph of them."""
    on_host = event.device_type == torch.autograd.DeviceType.CPU
    return on_host and not event.is_user_annotation and LAUNCH.fullmatch(event.name) is not None
