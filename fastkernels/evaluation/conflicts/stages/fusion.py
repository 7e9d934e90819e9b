"""fusion: kernels and bytes of a compiled host with the candidate, and with the reference; counted, not timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._inductor.compile_fx import compile_fx

from fastkernels.evaluation.conflicts.capture import Uncapturable, run_compiled
from fastkernels.evaluation.conflicts.host import Host
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.own_kernels import need_operators
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.stages.compiled import operators
from fastkernels.evaluation.conflicts.subject import Call, Subject
from fastkernels.runtime.witness import is_launch


class _Counted(Exception):
    """Stops Inductor once it has fused: no code is wanted."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What Inductor would launch, and the bytes that these kernels read and write."""

    kernels: int
    nbytes: int
    operators: frozenset[str]

    def __str__(self) -> str:
        return f"{self.kernels} kernels and {self.nbytes} bytes"


def check_fusion(subject: Subject) -> Iterator[Finding]:
    """A remark: an operator is a border that Inductor fuses nothing across, and may well be worth it."""
    need_operators(subject)
    for call in subject.calls(rows=[16]):
        if call.dtype != subject.dtypes[0]:
            continue
        mine = _cost(subject, call, subject.build(call))
        theirs = _cost(subject, call, subject.reference(call)) if mine.operators else mine
        if mine.kernels > theirs.kernels or mine.nbytes > theirs.nbytes:
            names = sorted(mine.operators)
            text = f"a host with {', '.join(names)} compiles to {mine}; with the reference to {theirs}"
            evidence = Evidence(text=text, node=names[0])
            yield Finding(code="PF_FUSION_LOSS", bucket=str(call), evidence=evidence, advisory=True)


def _cost(subject: Subject, call: Call, module: nn.Module) -> Cost:
    launches: list[tuple[int, int]] = []
    names: set[str] = set()

    def count(nodes: list[Any]) -> list[Any]:
        real = [n for n in nodes if is_launch(n)]
        launches.append((len(real), sum(n.get_read_write_buffers_sizes() for n in real)))
        raise _Counted

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        names.update(operators(graph))
        patches = {"_post_fusion_custom_pass": count, "force_disable_caches": True}
        run: Any = compile_fx(graph, inputs, config_patches=patches)
        return run  # type: ignore[no-any-return] # compile_fx says too much of what it may return

    torch._dynamo.reset()
    try:
        with torch.no_grad():
            run_compiled(torch.compile(Host(module), backend=backend, fullgraph=True), subject.draw(call))
    except Uncapturable as error:
        raise Skip(f"not captured: {error}") from error
    except Exception as error:
        if not launches:
            raise Skip(f"does not compile: {frame_of(error).text.splitlines()[0]}") from error
    if not launches:
        raise Skip("nothing is left to compile: an empty graph")
    kernels, nbytes = launches[0]
    return Cost(kernels=kernels, nbytes=nbytes, operators=frozenset(names))
