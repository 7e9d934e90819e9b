"""workspace: scratch memory that a larger call replaces leaves graphs with the old address."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fastkernels.evaluation.conflicts.compare import Judge, warm
from fastkernels.evaluation.conflicts.graphed import Graphed
from fastkernels.evaluation.conflicts.observe import Seen, Watch
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip, need_cuda
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors

# Tensors of NaN, to lie where freed scratch lay: of every size class of the allocator, many of each.
CANARY_BYTES = tuple(512 << i for i in range(12))
CANARIES = 64


def check_workspace(subject: Subject) -> Iterator[Finding]:
    """Small, then large, then small again; without a device, whether state of the small call dies in the large one."""
    found = False
    pairs = [list(subject.calls(rows=[8, 64], cases=1))[i : i + 2] for i in (0, 2)]
    for pair in pairs:
        if len(pair) < 2 or pair[0].rows is None:
            continue
        check = _replayed if subject.device.type == "cuda" else _traced
        for finding in check(subject, *pair):
            found = True
            yield finding
    if not found:
        need_cuda(subject, predicted="state that a larger batch replaces")


def _traced(subject: Subject, small: Call, large: Call) -> Iterator[Finding]:
    module = subject.build(small)
    with torch.no_grad(), Watch(writes=False) as watch:
        module(*subject.draw(small))
    used = [t.untyped_storage() for s in watch.seen for t in tensors((s.args, s.kwargs, s.result))]
    refs = {storage._cdata: StorageWeakRef(storage) for storage in used}
    used.clear()
    watch.seen.clear()
    gc.collect()
    state = [(s, _address(s)) for s in refs.values() if not s.expired()]  # what the call used and did not let go
    with torch.no_grad():
        module(*subject.draw(large))
    gc.collect()
    lost = [s for s, address in state if s.expired() or _address(s) != address]
    if lost:
        kept = f"{len(lost)} of {len(state)} tensors kept from a call of {small.rows} rows"
        text = f"predicted: {kept} died, or moved, in one of {large.rows}"
        yield Finding(code="CG_STALE_PTR", bucket=str(large), evidence=Evidence(text=text), predicted=True)


def _address(storage: StorageWeakRef) -> int | None:
    """Where a storage's memory lies now; None for one that is gone. Resized, it is the same storage elsewhere."""
    if storage.expired():
        return None
    return torch.UntypedStorage._new_with_weak_ptr(storage.cdata).data_ptr()


def _replayed(subject: Subject, small: Call, large: Call) -> Iterator[Finding]:
    module, watch = subject.build(small), Watch(writes=False)
    warm(module, subject.draw(small))  # on the caller's stream: what this keeps is freed for the caller's stream
    try:
        graphed = Graphed(module, subject.draw(small), watching=watch)
    except RuntimeError as error:
        raise Skip(f"not captured: {error}") from error
    pinned = next((s.where for s in watch.seen if _from_pinned(s)), None)
    watch.seen.clear()  # it holds what the candidate may let go
    judge = Judge(subject, small)
    early = judge.wrong(graphed.replay(subject.draw(small, seed=3)), seed=3)
    if early is not None:
        raise Skip(f"a replay is wrong before any larger call: {early}")
    warm(module, subject.draw(large))
    gc.collect()
    canaries = [
        torch.full((size // 4,), float("nan"), device=subject.device) for size in CANARY_BYTES for _ in range(CANARIES)
    ]
    # The same for page-locked memory, whose allocator keeps no account of what a graph reads.
    locked = [] if pinned is None else [
        torch.full((size // 4,), float("nan"), pin_memory=True) for size in CANARY_BYTES for _ in range(CANARIES // 4)
    ]  # fmt: skip
    try:
        wrong = judge.wrong(graphed.replay(subject.draw(small, seed=4)), seed=4)
    except RuntimeError as error:
        wrong = str(error)
    else:
        written = sum(not bool(c.isnan().all()) for c in canaries)
        wrong = wrong or (f"{written} tensors of others were written" if written else None)
    del locked
    if wrong is not None:
        text = f"after a call of {large.rows} rows a replay of {small.rows} rows: {wrong}"
        code = "CG_STALE_PTR" if pinned is None else "CG_PINNED_REUSE"
        where = (pinned or Evidence()).model_copy(update={"text": text})
        yield Finding(code=code, bucket=str(small), evidence=where)


def _from_pinned(seen: Seen) -> bool:
    """A copy from page-locked host memory to the device: a graph keeps the address, not the contents."""
    given = [t for t in tensors((seen.args, seen.kwargs)) if t.device.type == "cpu"]
    return "copy" in seen.name and any(t.is_pinned() for t in given) and any(
        t.device.type == "cuda" for t in tensors(seen.result)
    )  # fmt: skip
