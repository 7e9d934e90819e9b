"""In a child: calls that were captured one by one become one graph, as an engine's decode step is one.

It is composed after the capture. No call can know what it will be composed with: other calls only, or copies that bring
other contents into its arguments before it, and take its outputs after it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from ctypes import byref, c_size_t, c_void_p
from dataclasses import dataclass

import torch

from fastkernels.evaluation.bench.cudart import DEVICE_TO_DEVICE, USE_NODE_PRIORITY, runtime
from fastkernels.evaluation.bench.graphed import Captured


@dataclass(frozen=True, kw_only=True)
class Copy:
    """``count`` bytes from the address ``source`` to the address ``target``."""

    target: int
    source: int
    count: int


Step = Captured | Copy


def interleaved(
    calls: Iterable[Captured], before: Iterable[Sequence[Copy]], after: Iterable[Captured]
) -> Iterator[Step]:
    """Each call between the copies that come right before it and what takes its outputs right after."""
    for call, bring, take in zip(calls, before, after, strict=True):
        yield from bring
        yield call
        yield take


class Chain:
    """Steps one after the other, each once the one before has ended, as one instantiated graph.

    The memory of the calls is their captures': those must live as long.

    Raises:
        RuntimeError: CUDA does not compose them: a call has nodes that allocate memory, or conditional ones.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        cuda, graph = runtime(), c_void_p()
        cuda.call("cudaGraphCreate", byref(graph), 0)
        try:
            last: c_void_p | None = None
            for step in steps:
                last = _added(graph, last, step)
            self._executable = c_void_p()
            cuda.call("cudaGraphInstantiateWithFlags", byref(self._executable), graph, USE_NODE_PRIORITY)
        finally:
            cuda.call("cudaGraphDestroy", graph)
        # With the chain or at exit; what a device that has failed says to it is of no use.
        weakref.finalize(self, _destroyed, self._executable)
        cuda.call("cudaGraphUpload", self._executable, torch.cuda.current_stream().cuda_stream)
        self.wait()

    def launch(self) -> None:
        """Runs it on the current stream; it is not waited for."""
        runtime().call("cudaGraphLaunch", self._executable, torch.cuda.current_stream().cuda_stream)

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        torch.cuda.synchronize()


def _added(graph: c_void_p, last: c_void_p | None, step: Step) -> c_void_p | None:
    """The node of ``step``, after ``last``; ``last`` itself where the call does nothing."""
    cuda, node = runtime(), c_void_p()
    first = (byref(node), graph, None if last is None else byref(last), 0 if last is None else 1)
    if isinstance(step, Copy):
        cuda.call("cudaGraphAddMemcpyNode1D", *first, step.target, step.source, step.count, DEVICE_TO_DEVICE)
        return node
    child, nodes = step.graph.raw_cuda_graph(), c_size_t()
    cuda.call("cudaGraphGetNodes", child, None, byref(nodes))
    if not nodes.value:
        return last
    cuda.call("cudaGraphAddChildGraphNode", *first, child)
    return node


def _destroyed(executable: c_void_p) -> None:
    try:
        runtime().call("cudaGraphExecDestroy", executable)
    except RuntimeError:
        return
