"""fake: each operator the candidate brings, run for real and under FakeTensorMode, in every bucket."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedOperatorException
from torch.utils import _pytree as pytree

from fastkernels.evaluation.conflicts.observe import Seen, Watch
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Subject, tensors


def check_fake(subject: Subject) -> Iterator[Finding]:
    """Shape, dtype and strides of every output."""
    found = False
    for call in subject.calls():
        module = subject.build(call)  # alive to the end: an operator may be unregistered with it
        with torch.no_grad(), Watch() as watch:
            module(*subject.draw(call))
        for seen in watch.foreign():
            found = True
            yield from _compared(seen, str(call))
    if not found:
        raise Skip("the candidate brings no operator of its own")


def _compared(seen: Seen, bucket: str) -> Iterator[Finding]:
    def finding(code: str, text: str) -> Finding:
        where = seen.where.model_copy(update={"node": seen.name, "text": text})
        return Finding(code=code, bucket=bucket, evidence=where)

    mode = FakeTensorMode()
    fakes = pytree.tree_map_only(torch.Tensor, mode.from_tensor, (seen.args, seen.kwargs))
    try:
        with mode:
            faked = tensors(seen.op(*fakes[0], **fakes[1]))
    except UnsupportedOperatorException as error:
        yield finding("FK_MISSING", f"no fake for {error}")
        return
    except Exception as error:  # noqa: BLE001 - a fake may raise anything; torch says a missing one in many ways
        missing = not torch._library.utils.has_fake_kernel(seen.op)
        yield finding("FK_MISSING" if missing else "FK_SHAPE", f"the fake raises {type(error).__name__}: {error}"[:600])
        return
    real = tensors(seen.result)
    if len(real) != len(faked):
        yield finding("FK_SHAPE", f"{len(faked)} outputs faked, {len(real)} returned")
        return
    for i, (r, f) in enumerate(zip(real, faked, strict=True)):
        if tuple(r.shape) != tuple(f.shape):
            yield finding("FK_SHAPE", f"output {i}: fake {tuple(f.shape)}, kernel {tuple(r.shape)}")
        elif r.dtype != f.dtype:
            yield finding("FK_DTYPE", f"output {i}: fake {f.dtype}, kernel {r.dtype}".replace("torch.", ""))
        elif _strides(r) != _strides(f):
            yield finding("FK_STRIDE", f"output {i}: fake {tuple(f.stride())}, kernel {tuple(r.stride())}")


def _strides(t: torch.Tensor) -> list[int]:
    """Strides that matter: of axes longer than one, of tensors that hold anything."""
    return [s for size, s in zip(t.shape, t.stride(), strict=True) if size > 1] if t.numel() else []
