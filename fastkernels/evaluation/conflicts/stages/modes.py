"""inference_mode and autocast: the same result in every mode, and the same dtype compiled as eager."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.evaluation.conflicts.capture import Uncapturable, compiled
from fastkernels.evaluation.conflicts.compare import Judge, copied
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Subject, tensors


def check_inference_mode(subject: Subject) -> Iterator[Finding]:
    """Inference tensors in, then plain tensors again: state born in inference mode must not get in the way."""
    for call in subject.calls(rows=[8]):
        module, judge = subject.build(call), Judge(subject, call)
        try:
            with torch.inference_mode():
                inside = copied(module(*subject.draw(call)))
            with torch.no_grad():
                outside = copied(module(*subject.draw(call)))
        except Exception as error:  # noqa: BLE001 - anything; without the mode the eager stage has seen it pass
            yield Finding(code="IM_INFERENCE_MODE", bucket=str(call), evidence=frame_of(error))
            continue
        for mode, result in (("in", inside), ("after", outside)):
            wrong = judge.wrong(result)
            if wrong is not None:
                text = f"{mode} inference mode: {wrong}"
                yield Finding(code="IM_INFERENCE_MODE", bucket=str(call), evidence=Evidence(text=text))


def check_autocast(subject: Subject) -> Iterator[Finding]:
    """Under autocast to bfloat16: dtypes of the outputs, eager against compiled."""
    if torch.float32 not in subject.dtypes:
        raise Skip("float32 is not supported")
    for call in subject.calls(rows=[8]):
        if call.dtype != torch.float32:
            continue
        module = subject.build(call)
        with torch.no_grad(), torch.autocast(subject.device.type, torch.bfloat16):
            try:
                eager = tensors(module(*subject.draw(call)))
            except Exception as error:
                raise Skip(f"raises under autocast: {frame_of(error).text}") from error
            try:
                fast = tensors(compiled(subject.build(call), "aot_eager")(*subject.draw(call)))
            except Uncapturable as error:
                raise Skip(f"not captured: {error}") from error
        for i, (e, c) in enumerate(zip(eager, fast, strict=True)):
            if e.dtype != c.dtype:
                text = f"output {i} is {e.dtype} in eager and {c.dtype} compiled".replace("torch.", "")
                yield Finding(code="DT_AUTOCAST", bucket=str(call), evidence=Evidence(text=text))
