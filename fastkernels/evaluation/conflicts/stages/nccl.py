"""nccl: two ranks run the candidate's collectives, and capture them where there are two devices."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from fastkernels.evaluation.conflicts.observe import Watch
from fastkernels.evaluation.conflicts.ranks import CAPTURE, COLLECTIVES, RANKS, Mode, Plan, Step, Told, together
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Subject
from fastkernels.evaluation.conflicts.target import targets_of

SECONDS = 80.0  # for two ranks: import, one communicator, a few calls; a hang ends here or at the group's own limit


def check_nccl(subject: Subject) -> Iterator[Finding]:
    """Calls by two ranks (gloo on CPUs, NCCL on two devices), then a capture in the global mode and replays; where that
    fails, once more in the thread-local mode, in new processes."""
    if subject.rebuild is not None:
        raise Skip("the ranks run the candidate as it is, not behind an operator")
    if not _named(subject):
        raise Skip("the candidate calls no collective")
    cuda = subject.device.type == "cuda"
    target = targets_of(subject.candidate)[0]
    with tempfile.TemporaryDirectory(prefix="fastkernels-ranks-", ignore_cleanup_errors=True) as root:

        def ranks(mode: Mode, *, cuda: bool = cuda) -> Told:
            folder = Path(root) / f"{mode}-{'cuda' if cuda else 'cpu'}"
            return together(Plan(target=target, mode=mode, cuda=cuda), folder, timeout=SECONDS)

        if not cuda or torch.cuda.device_count() < RANKS:
            if "cpu" not in (subject.candidate.supports.devices or ("cpu",)):
                raise Skip("two CUDA devices are needed, and the candidate does not run on CPUs")
            yield from _judged(ranks("eager", cuda=False))
            raise Skip("two ranks on CPUs agree; a capture needs two CUDA devices")
        told = ranks("global")
        failure = next(iter(_judged(told)), None)
        if failure is None:
            return
        if failure.code == "CG_NCCL_CAPTURE":
            local = next(iter(_judged(ranks("thread_local"))), None)
            also = "so does the thread-local mode" if local is not None else "the thread-local mode passes"
            text = f"{failure.evidence.text}; {also}"
            failure = failure.model_copy(update={"evidence": failure.evidence.model_copy(update={"text": text})})
        yield failure


def _named(subject: Subject) -> set[str]:
    """Collectives of calls as the only rank of a group; in one of them the stream says that it is captured."""
    names: set[str] = set()
    made = not dist.is_initialized()
    if made:
        backend = "nccl" if subject.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    capturing = torch.cuda.is_current_stream_capturing
    try:
        for call in subject.calls(rows=[16], cases=1):
            for said in (capturing, lambda: True):
                torch.cuda.is_current_stream_capturing = said
                with torch.no_grad(), Watch(writes=False) as watch:
                    subject.build(call)(*subject.draw(call))
                names |= {s.name for s in watch.seen if s.op.namespace in COLLECTIVES}
    finally:
        torch.cuda.is_current_stream_capturing = capturing
        if made:
            dist.destroy_process_group()
    return names


def _judged(told: Told) -> Iterator[Finding]:
    """What went wrong first: ranks that do not do the same, then errors, deaths and hangs, then wrong results."""
    calls = [[s for s in log if s.kind == "collective"] for log in told.logs]
    at = next((i for i in range(max(map(len, calls))) if _at(calls[0], i) != _at(calls[1], i)), None)
    if at is not None:
        short = next((r for r in (0, 1) if len(calls[r]) == at), None)
        if short is None or short in told.hung or told.logs[short][-1].kind == "done":
            one, other = (_at(c, at) or "nothing" for c in calls)
            text = f"collective {at + 1}: rank 0 calls {one}, rank 1 {other}"
            yield _finding("NC_MISMATCH", text, next(c[at] for c in calls if len(c) > at))
            return
    ended = [log[-1].kind for log in told.logs]
    if ended != ["done", "done"]:
        rank = ended.index("error") if "error" in ended else next(r for r in (0, 1) if ended[r] != "done")
        log = told.logs[rank]
        phase = next((s.text for s in reversed(log) if s.kind == "phase"), "start")
        why = log[-1].text if ended[rank] == "error" else f"no end within {SECONDS:.0f} s or before it died"
        captured = any(s.kind == "phase" and s.text == CAPTURE for s in log)
        step = log[-1] if log[-1].file is not None else next(iter(reversed(calls[rank])), None)
        code = "CG_NCCL_CAPTURE" if captured else "NC_ERROR"
        yield _finding(code, f"rank {rank}, in {phase}: {why}"[:1500], step)
        return
    for rank, step in told.of("wrong")[:1]:
        code = "CG_NCCL_CAPTURE" if step.text.startswith("replay") else "NC_PARITY"
        yield _finding(code, f"rank {rank}, {step.text}", step)


def _at(calls: list[Step], i: int) -> str | None:
    return calls[i].text if i < len(calls) else None


def _finding(code: str, text: str, step: Step | None) -> Finding:
    where = Evidence(text=text) if step is None else Evidence(text=text, file=step.file, line=step.line)
    return Finding(code=code, evidence=where)
