"""Launches per forward call: of events as a profiler shows them, and on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.launches import Launches, count_launches, launches_per_step, profiled


def event(name: str, number: int, *, device: DeviceType = DeviceType.CPU, annotation: bool = False) -> FunctionEvent:
    return FunctionEvent(
        id=number, name=name, thread=1, start_us=0.0, end_us=1.0, device_type=device, is_user_annotation=annotation
    )


@pytest.mark.parametrize(
    "name",
    [
        "cudaLaunchKernel",
        "cudaLaunchKernelExC",
        "cudaLaunchCooperativeKernel",
        "cuLaunchKernel",
        "cuLaunchKernelEx",
        "cudaGraphLaunch",
        "cudaGraphLaunch_v10000",
    ],
)
def test_what_starts_kernels_is_a_launch(name):
    assert count_launches([event(name, 1)], 1).host == 1


@pytest.mark.parametrize("name", ["cudaMemcpyAsync", "cudaStreamSynchronize", "aten::mm", "cudaLaunchHostFunc"])
def test_what_does_not_is_none(name):
    assert count_launches([event(name, 1)], 1).host == 0


def test_a_launch_seen_in_runtime_and_driver_counts_once_and_a_graph_is_one_launch_of_many_kernels():
    events = [event("cudaLaunchKernelExC", 7), event("cuLaunchKernelEx", 7), event("cudaGraphLaunch", 8)]
    events += [event("gemm", n, device=DeviceType.CUDA) for n in (7, 8, 8, 8)]
    events += [event("Memcpy DtoD (Device -> Device)", 9, device=DeviceType.CUDA)]
    events += [event("a range", 0, device=DeviceType.CUDA, annotation=True)]
    assert count_launches(events, 2) == Launches(host=1.0, kernels=2.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_launched():
    assert launches_per_step(lambda: torch.ones(2) + 1, 1) is None


def test_no_steps_are_refused():
    with pytest.raises(EvaluationError, match="0 forward calls"):
        launches_per_step(lambda: None, 0)


def test_a_second_profiler_is_refused():
    with profile(), pytest.raises(EvaluationError, match="a profiler is running already"):
        profiled(lambda: None)


@pytest.mark.gpu
@torch.inference_mode()
def test_eager_launches_each_kernel_and_a_graph_launches_them_at_once():
    x = torch.ones(1024, device="cuda")

    def step():
        y = x
        for _ in range(10):
            y = y + 1
        return y

    step()
    assert launches_per_step(lambda: [step() for _ in range(3)], 3) == Launches(host=10.0, kernels=10.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    assert launches_per_step(lambda: [graph.replay() for _ in range(3)], 3) == Launches(host=1.0, kernels=10.0)
