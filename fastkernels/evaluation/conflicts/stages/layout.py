"""layout: copies that only change strides, inside the candidate and its operators, against the reference's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from fastkernels.evaluation.conflicts.observe import Seen, Watch
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors

COPIES = {"aten::clone", "aten::contiguous", "aten::_to_copy", "aten::copy_", "aten::copy"}


def check_layout(subject: Subject) -> Iterator[Finding]:
    """Bytes moved by layout copies on the task's own arguments."""
    for call in subject.calls(rows=[16]):
        mine, theirs = (_copies(subject, call, m) for m in (subject.build(call), subject.reference(call)))
        extra = sum(map(_bytes, mine)) - sum(map(_bytes, theirs))
        largest = max((t.nbytes for t in tensors(subject.draw(call)) if t.is_floating_point()), default=0)
        if mine and extra >= max(largest, 1):
            text = f"{extra} bytes copied for layout only ({len(mine)} copies); the largest argument has {largest}"
            where = mine[-1].where.model_copy(update={"text": text, "node": mine[-1].name})
            yield Finding(code="PF_HIDDEN_COPY", bucket=str(call), evidence=where)


def _copies(subject: Subject, call: Call, module: nn.Module) -> list[Seen]:
    with torch.no_grad():
        module(*subject.draw(call))  # what is packed once, at the first call, is no copy in each
        with Watch() as watch:
            module(*subject.draw(call))
    return [s for s in watch.seen if _is_layout_copy(s)]


def _is_layout_copy(seen: Seen) -> bool:
    """The same elements in the same dtype, laid out otherwise."""
    if seen.name not in COPIES:
        return False
    given, made = tensors((seen.args, seen.kwargs)), tensors(seen.result)
    if not given or not made:
        return False
    source, target = given[-1], made[0]
    return (
        source.shape == target.shape and source.dtype == target.dtype and source.device == target.device
        and source.stride() != target.stride() and not (source.is_contiguous() and _is_part(target))
    )  # fmt: skip


def _is_part(target: torch.Tensor) -> bool:
    """Whether a tensor is a slice of something larger: to write a result there is not to change its layout."""
    return not torch.ops.aten.is_non_overlapping_and_dense.default(target)


def _bytes(seen: Seen) -> int:
    return tensors(seen.result)[0].nbytes
