"""Passes inside Inductor: they put our hash into its cache key, and count what its graph holds in the end.

Counts go into Inductor's own counters, which it stores with a compiled graph and adds again on a cache hit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import fx
from torch._dynamo.utils import counters
from torch._inductor import custom_graph_pass
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.dependencies import WeakDep
from torch._inductor.ir import MultiOutput
from torch._inductor.scheduler import NopKernelSchedulerNode

from fastkernels.runtime.injected import name_of, operator_of
from fastkernels.runtime.operator import NAMESPACE

PRESENT, COPIED, LAUNCHED = "fastkernels present ", "fastkernels copied argument of ", "fastkernels launched "
KERNELS, EXTERN = "kernels", "extern"  # names under LAUNCHED
# Before torch 2.13 a pass over scheduler nodes had no class of its own.
SchedulerPass: type = getattr(custom_graph_pass, "CustomSchedulerPass", CustomGraphPass)


class CountPresent(CustomGraphPass):
    """``post_grad_custom_post_pass``: counts our operators; runs the passes that the user had there first."""

    def __init__(self, key: str, former: Any) -> None:
        self.key = key
        self.former = [] if former is None else list(former) if isinstance(former, (list, tuple)) else [former]

    def __call__(self, graph: fx.Graph) -> None:
        for earlier in self.former:
            earlier(graph)
        for node in graph.nodes:
            op = operator_of(node)
            if op is not None:
                counters["inductor"][PRESENT + name_of(op)] += 1

    def uuid(self) -> Any | None:
        identities = [p.uuid() if isinstance(p, CustomGraphPass) else None for p in self.former]
        return None if None in identities else (self.key, get_hash_for_files((__file__,)), *identities)


class CountCopies(SchedulerPass):  # type: ignore[misc] # the base depends on torch's version
    """``_pre_fusion_custom_pass``: counts kernels that only copy what one of our operators then reads or writes."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, nodes: list[Any]) -> list[Any]:
        makers = {name: node for node in nodes for name in node.get_buffer_names()}
        for node in nodes:
            op = getattr(node.node, "op_overload", None)
            if op is None or getattr(op, "namespace", None) != NAMESPACE:
                continue
            # What it only has to come after, such as a copy of its argument that is made for others, is a WeakDep.
            read = {d.name for d in node.read_writes.reads if not isinstance(d, WeakDep)}
            copied = sum(1 for name in read if name in makers and _only_copies(makers[name]))
            if copied:
                counters["inductor"][COPIED + name_of(op)] += copied
        return nodes

    def uuid(self) -> Any | None:
        return (self.key, get_hash_for_files((__file__,)))


def is_launch(node: Any) -> bool:
    """Whether a scheduler node runs something: not memory alone, nor one of the results of another node's call."""
    return not isinstance(node, NopKernelSchedulerNode) and not isinstance(node.node, MultiOutput)


class CountKernels(SchedulerPass):  # type: ignore[misc] # as above
    """``_post_fusion_custom_pass``: counts kernels to be generated, and calls of kernels that are not Inductor's."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, nodes: list[Any]) -> list[Any]:
        for node in nodes:
            if is_launch(node):
                counters["inductor"][LAUNCHED + (EXTERN if node.is_extern() else KERNELS)] += 1
        return nodes

    def uuid(self) -> Any | None:
        return (self.key, get_hash_for_files((__file__,)))


def _only_copies(node: Any) -> bool:
    """A kernel with one load, one store and nothing in between."""
    done = getattr(getattr(node, "_body", None), "op_counts", None)
    return done is not None and set(done) <= {"load", "store", "output", "get_index"} and done["load"] == 1


def counted(before: Mapping[str, int], prefix: str) -> Counter[str]:
    """What the passes counted under ``prefix`` since ``counters["inductor"]`` was ``before``."""
    now = counters["inductor"]
    grown = {name: now[name] - before.get(name, 0) for name in now if name.startswith(prefix)}
    return Counter({name.removeprefix(prefix): n for name, n in grown.items() if n})
