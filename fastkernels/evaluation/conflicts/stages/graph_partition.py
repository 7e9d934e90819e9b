"""graph_partition: Inductor with CUDA graphs; whatever it keeps out of them is the candidate's doing or the host's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch._dynamo
from torch import nn

from fastkernels.evaluation.conflicts.capture import Uncapturable, run_compiled
from fastkernels.evaluation.conflicts.compare import close, copied
from fastkernels.evaluation.conflicts.graphed import code_of
from fastkernels.evaluation.conflicts.host import Host
from fastkernels.evaluation.conflicts.observe import Watch, frame_of
from fastkernels.evaluation.conflicts.recordings import recordings
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip, need_cuda
from fastkernels.evaluation.conflicts.subject import Call, Subject, leading, tensors

CALLS = 4  # warm-up, recording, two replays
SIZES = (16, 32, 48)
CALLS_A_SIZE = 4  # a recording after the second is one too many
MOST = 2  # times the recordings of the reference: one operator that stays out of the graphs cuts a graph in two


def check_graph_partition(subject: Subject) -> Iterator[Finding]:
    """``reduce-overhead`` in a host, with a skipped graph as an error, then replays against eager; then other sizes."""
    need_cuda(subject)
    sound = True
    for call in subject.calls(rows=[16], cases=1):
        for finding in _captured(subject, call):
            sound = False
            yield finding
        if not sound:
            return
    for call in list(subject.calls(rows=[16], cases=1))[:1]:
        if call.rows is not None:
            yield from _storm(subject, call)


def _captured(subject: Subject, call: Call) -> Iterator[Finding]:
    torch._dynamo.reset()
    with torch.no_grad():
        host = Host(subject.build(call))
        eager = [copied(host(*subject.draw(call, seed=s))) for s in range(CALLS)]
    apart = _apart(subject, call)
    try:
        with recordings() as made:
            for seed, got in enumerate(_run(Host(subject.build(call)), [call] * CALLS, subject, apart=apart)):
                wrong = close(got, eager[seed], subject, call.dtype)
                if wrong is not None:
                    yield Finding(code="CG_REPLAY", bucket=str(call), evidence=Evidence(text=wrong))
    except Uncapturable as error:
        raise Skip(f"not captured by Dynamo: {error}") from error
    except Exception as error:  # noqa: BLE001 - a compiler may raise anything; that is the finding
        code = code_of(error)
        code = "CG_PARTITION" if code == "CG_CAPTURE_ERROR" else code
        yield Finding(code=code, bucket=str(call), evidence=frame_of(error))
        return
    if not made:
        text = "no CUDA graph was recorded, not even of the candidate's neighbours"
        yield Finding(code="CG_PARTITION", bucket=str(call), evidence=Evidence(text=text))


def _storm(subject: Subject, call: Call) -> Iterator[Finding]:
    """Graphs over several batch sizes, each called a few times, against those of the reference."""
    calls = [Call(case=call.case, rows=rows, dtype=call.dtype) for rows in SIZES for _ in range(CALLS_A_SIZE)]
    counts = []
    for module in (subject.build(call), subject.reference(call)):
        torch._dynamo.reset()
        try:
            with recordings() as made:
                for _ in _run(Host(module), calls, subject, apart=_apart(subject, call), dynamic=True):
                    pass
        except Exception:  # noqa: BLE001 - a compiler may raise anything; the stages before this one have told
            return
        counts.append(len(made))
        if counts[0] <= MOST * len(SIZES):
            return  # what a reference captured whole needs: it need not be asked
    if counts[0] > MOST * counts[1]:
        text = f"{counts[0]} CUDA graphs for {len(SIZES)} batch sizes, the reference needs {counts[1]}"
        yield Finding(code="CG_DYN_STORM", bucket=str(call), evidence=Evidence(text=text))


def _apart(subject: Subject, call: Call) -> list[str]:
    """Behind an opaque operator, after the mend: Inductor is told to keep that operator out of the graphs."""
    if subject.rebuild is None:
        return []
    with torch.no_grad(), Watch(writes=False) as watch:
        Host(subject.build(call))(*subject.draw(call))
    return sorted({s.name for s in watch.foreign()})


def _run(
    host: nn.Module, calls: list[Call], subject: Subject, *, apart: list[str], dynamic: bool = False
) -> Iterator[Any]:
    """Copies of the compiled host's outputs for each call, drawn with its position as the seed."""
    import torch._inductor.config as inductor

    options = {"triton.cudagraph_or_error": not apart, "custom_should_partition_ops": apart}
    function = torch.compile(host, mode="reduce-overhead", fullgraph=True)
    for seed, call in enumerate(calls):
        arguments = subject.draw(call, seed=seed)
        for t in tensors(arguments) if dynamic else ():
            if t.dim() and t.shape[0] == leading(arguments):
                torch._dynamo.maybe_mark_dynamic(t, 0)
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad(), inductor.patch(options):
            got = copied(run_compiled(function, arguments))
        yield got
