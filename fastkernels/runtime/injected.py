"""Candidates' operators in FX graphs: which of them a graph holds, and how one goes back to the task's reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket

from fastkernels.runtime.opaque import operators
from fastkernels.runtime.operator import NAMESPACE


@dataclass(frozen=True, kw_only=True)
class Injected:
    """One registered operator: its candidate's class, its task, and its reference as a function of its arguments.

    ``transparent``: Inductor's graph holds the candidate's kernels, not the operator.
    """

    op: OpOverload
    task: str
    candidate: str
    decomposition: Callable[..., Any]
    transparent: bool = False

    @property
    def name(self) -> str:
        """Qualified name without the overload, ``fastkernels::rms_norm_<hash10>``."""
        return name_of(self.op)

    def matches(self, pattern: str) -> bool:
        """``pattern``, a glob, is for the task, the operator's name or the candidate's class."""
        names = (self.task, self.name, self.name.removeprefix(f"{NAMESPACE}::"), self.candidate)
        return any(fnmatchcase(name, pattern) for name in names)


def registered() -> dict[OpOverload, Injected]:
    """Every operator that stands for a candidate now."""
    return {
        op: Injected(
            op=op,
            task=operator.signature.task,
            candidate=operator.label,
            decomposition=operator.decomposed(layout),
            transparent=operator.transparent,
        )
        for operator in operators()
        for layout, op in operator.ops.items()
    }


def name_of(op: OpOverload) -> str:
    return op.name().partition(".")[0]


def operator_of(node: fx.Node) -> OpOverload | None:
    """The candidate's operator that a node calls, also through a packet or ``auto_functionalized``; or None."""
    if node.op != "call_function":
        return None
    target: Any = node.target
    if isinstance(target, torch._ops.HigherOrderOperator) and target.name().startswith("auto_functionalized"):
        target = node.args[0]
    if isinstance(target, OpOverloadPacket) and target._qualified_op_name.startswith(f"{NAMESPACE}::"):
        target = target.default
    return target if isinstance(target, OpOverload) and target.namespace == NAMESPACE else None


def calls_in(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, OpOverload]]:
    """Nodes that call a candidate's operator, in the graph and in the graphs inside it."""
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                op = operator_of(node)
                if op is not None:
                    yield node, op


def count(graph: fx.GraphModule) -> Counter[str]:
    """Calls of each operator by name."""
    return Counter(name_of(op) for _, op in calls_in(graph))


def take_out(graph: fx.GraphModule, names: Collection[str]) -> None:
    """Puts the reference in the place of the operators with these names, for AOTAutograd to trace through.

    Done here and not by a decomposition table: functionalisation wraps an operator that writes to its arguments, and
    never asks for its decomposition. AOTAutograd does not cache a graph with a Python function in it; Inductor does.
    """
    known = registered()
    for node, op in calls_in(graph):
        if name_of(op) in names:
            node.target = known[op].decomposition
    for module in graph.modules():
        if names and isinstance(module, fx.GraphModule):
            module.recompile()
