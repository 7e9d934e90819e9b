"""freezing: operators of the candidate's that read parameters alone, which Inductor's freezing computes once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._inductor.constant_folding import ConstantFolder

from fastkernels.evaluation.conflicts.lowered import Lowered, lower
from fastkernels.evaluation.conflicts.observe import BUILTIN, frame_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Subject


def check_freezing(subject: Subject) -> Iterator[Finding]:
    """Inductor's own constant folder on the graph, with the parameters as constants."""
    asked = [c for c in subject.calls(rows=[8]) if any(True for _ in subject.reference(c).parameters())]
    if not asked:
        raise Skip("no parameters")
    for call in asked:
        if call.dtype != subject.dtypes[0]:
            continue
        folded = _folded(lower(subject.build(call), subject.draw(call)))
        if folded:
            text = f"{', '.join(folded)} on parameters alone: computed once under freezing, and kept after an update"
            yield Finding(code="FZ_CONST_FOLDED", bucket=str(call), evidence=Evidence(text=text, node=folded[0]))


class Folder(ConstantFolder):
    """Folds nothing, and notes what would be."""

    def __init__(self, graph: fx.GraphModule, parameters: list[str]) -> None:
        super().__init__(graph, lifted_constant_names=parameters)
        self.reads = set(parameters)  # names of what holds a parameter, or comes of one
        self.folded: list[fx.Node] = []

    def add_node_replacement(self, node: fx.Node, tensor: Any) -> None:
        if self.reads & {argument.name for argument in node.all_input_nodes}:
            self.reads.add(node.name)
            self.folded.append(node)
        super().add_node_replacement(node, tensor)


def _folded(lowered: Lowered) -> list[str]:
    inputs = [n for n in lowered.dynamo.graph.nodes if n.op == "placeholder"]
    kept = [n for n in lowered.aot.graph.nodes if n.op == "placeholder"]
    if len(inputs) != len(kept):
        raise Skip("AOTAutograd's graph has other inputs than Dynamo's")
    folder = Folder(lowered.aot, [k.name for n, k in zip(inputs, kept, strict=True) if _is_parameter(n)])
    try:
        folder.run()
    except Exception as error:
        raise Skip(f"torch's constant folder does not take the graph: {frame_of(error).text}") from error
    return sorted({_name(node) for node in folder.folded} - {""})


def _is_parameter(node: fx.Node) -> bool:
    return isinstance(node.meta.get("example_value"), nn.Parameter)


def _name(node: fx.Node) -> str:
    target = node.target
    foreign = isinstance(target, torch._ops.OpOverload) and target.namespace not in BUILTIN
    return target._schema.name if foreign else ""
