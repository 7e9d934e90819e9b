"""nested_region: the candidate as a region that the compiler traces once and calls twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.evaluation.conflicts.capture import Uncapturable, compiled
from fastkernels.evaluation.conflicts.compare import close, copied
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.own_kernels import need_operators
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors


class Twice(nn.Module):
    """Two calls of one region, each on intermediates of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

        @torch.compiler.nested_compile_region
        def region(*arguments: Any) -> Any:
            return inner(*arguments)

        self.region = region

    def forward(self, *arguments: Any) -> list[torch.Tensor]:
        calls = [pytree.tree_map_only(torch.Tensor, torch.clone, arguments) for _ in range(2)]
        return [t for call in calls for t in tensors(self.region(*call))]


def check_nested_region(subject: Subject) -> Iterator[Finding]:
    """A remark: whether regions are reused is the host's choice, and some failures are torch's own."""
    need_operators(subject)
    for call in subject.calls(rows=[8]):
        if call.dtype != subject.dtypes[0]:
            continue
        try:
            with torch.no_grad():
                compiled(subject.build(call), "aot_eager")(*subject.draw(call))
        except Exception as error:
            raise Skip(f"does not compile alone: {frame_of(error).text.splitlines()[0]}") from error
        evidence = _wrong(subject, call, subject.build)
        if evidence is None:
            continue
        if _wrong(subject, call, subject.reference) is not None:
            raise Skip("the reference cannot be a reused region either")
        yield Finding(code="NR_NESTED_REGION", bucket=str(call), evidence=evidence, advisory=True)


def _wrong(subject: Subject, call: Call, build: Callable[[Call], nn.Module]) -> Evidence | None:
    with torch.no_grad():
        eager = copied(tensors(build(call)(*subject.draw(call))))
        try:
            got = compiled(Twice(build(call)), "aot_eager")(*subject.draw(call))
        except Uncapturable as error:
            return error.evidence
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything; that is the finding
            return frame_of(error)
    wrong = close(got, eager + eager, subject, call.dtype)
    return None if wrong is None else Evidence(text=f"a region called twice, compiled against eager: {wrong}")
