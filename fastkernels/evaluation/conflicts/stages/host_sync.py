"""host_sync: does the host wait for the device, or copy from pageable memory, once warm?"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.evaluation.conflicts.compare import warm
from fastkernels.evaluation.conflicts.fake_cuda import faked
from fastkernels.evaluation.conflicts.observe import Seen, Watch, frame_of, host_reads
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.skip import need_cuda
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors
from fastkernels.runtime.host_work import WAITING_OPERATORS

# Operators that read values on the host; these two do so in their composite forms.
WAITING = WAITING_OPERATORS | {"aten::allclose", "aten::repeat_interleave"}
INDEXING = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"})


def check_host_sync(subject: Subject) -> Iterator[Finding]:
    """With torch's synchronisation debug mode on a device; from the trace of a warm call without one."""
    found = False
    for call in subject.calls(rows=[8]):
        findings = _observed(subject, call) if subject.device.type == "cuda" else _predicted(subject, call)
        for finding in findings:
            found = True
            yield finding
    if not found:
        need_cuda(subject, predicted="host read")


def _observed(subject: Subject, call: Call) -> Iterator[Finding]:
    module, arguments = subject.build(call), subject.draw(call)
    for _ in range(2):
        warm(module, arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            module(*arguments)
    except RuntimeError as error:
        torch.cuda.set_sync_debug_mode("default")
        if "synchronizing" not in str(error):
            raise
        pageable = copies_up(subject, call)
        yield Finding(code="CG_H2D_PAGEABLE" if pageable else "CG_SYNC", bucket=str(call), evidence=frame_of(error))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def copies_up(subject: Subject, call: Call) -> bool:
    """Whether the only device traffic that waits goes up: a CPU tensor does, and no value is read."""
    module, arguments = subject.build(call), subject.draw(call)
    warm(module, arguments)
    with host_reads() as reads, torch.no_grad(), Watch(writes=False) as watch:
        module(*arguments)
    return any(map(_up, watch.seen)) and not reads and not any(map(_waits, watch.seen))


def _waits(seen: Seen) -> bool:
    """Besides the operators in WAITING, indexing with a mask: the kernel asks how many elements it holds. One value
    written through a mask is a fill, which does not."""
    if seen.name in WAITING:
        return True
    if seen.name not in INDEXING:
        return False
    mask = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in seen.args[1])
    return mask and not (len(seen.args) > 2 and seen.args[2].numel() == 1)


def _up(seen: Seen) -> bool:
    """A CPU tensor with axes in, a device tensor out; or torch.tensor, which makes its copy out of our sight."""
    given = any(t.device.type == "cpu" and t.dim() > 0 for t in tensors((seen.args, seen.kwargs)))
    return (given or seen.name == "aten::lift_fresh") and any(t.device.type == "cuda" for t in tensors(seen.result))


def _predicted(subject: Subject, call: Call) -> Iterator[Finding]:
    module = subject.build(call)
    warm(module, subject.draw(call))
    arguments = subject.draw(call)
    with host_reads() as reads, torch.no_grad(), Watch() as watch:
        module(*arguments)
    for seen in watch.seen:
        if _waits(seen):
            where = seen.where.model_copy(update={"text": f"predicted: {seen.name} waits for the device"})
            yield Finding(code="CG_SYNC", bucket=str(call), evidence=where, predicted=True)
    for read in reads:
        where = read.where.model_copy(update={"text": f"predicted: Tensor.{read.how} brings a value to the host"})
        yield Finding(code="CG_SYNC", bucket=str(call), evidence=where, predicted=True)
    moves, misuses = faked(subject, call)
    for misuse in misuses:
        if misuse.kind == "wait":
            yield Finding(code="CG_SYNC", bucket=str(call), evidence=misuse.where, predicted=True)
    for move in moves:
        if move.kind != "mixed":
            code = "CG_H2D_PAGEABLE" if move.kind == "up" else "CG_SYNC"
            yield Finding(code=code, bucket=str(call), evidence=move.where, predicted=True)
