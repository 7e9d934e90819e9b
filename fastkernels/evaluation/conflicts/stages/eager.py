"""eager: parity with the reference in every bucket, dtypes, repeatability, and no memory of earlier calls."""

from __future__ import annotations

import itertools
import random
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.evaluation.conflicts.compare import Judge, copied, same_bits, warm
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip, wants_cuda
from fastkernels.evaluation.conflicts.stale import blind_parameter, keeps_initial_values
from fastkernels.evaluation.conflicts.subject import Call, Subject, leading, tensors

REPEATS = 6


def check_eager(subject: Subject) -> Iterator[Finding]:
    """Each case with its own shapes, then each representative in every bucket on one module that lives on."""
    modules: dict[tuple[int, torch.dtype], nn.Module] = {}
    first: tuple[Call, Any] | None = None  # the first call of this process, before any state
    natural = [Call(case=c, rows=None, dtype=d) for c in subject.cases for d in subject.dtypes]
    for call in [*natural, *subject.calls()]:
        key = (id(call.case), call.dtype)
        try:
            module = modules.setdefault(key, subject.build(call))
            result = warm(module, subject.draw(call))
        except Exception as error:
            if wants_cuda(error):
                raise Skip(f"needs a CUDA device: {error}") from error
            yield Finding(code=_code(error), bucket=str(call), evidence=frame_of(error))
            continue
        first = first or (call, result)
        judge = Judge(subject, call)
        dtype = judge.wrong_dtype(result)
        wrong = judge.wrong(result)
        if wrong is not None:
            yield _explained(subject, call, judge, wrong, first)
        elif dtype is not None:
            yield Finding(code="DT_OUTPUT_DTYPE", bucket=str(call), evidence=Evidence(text=dtype))
    for call in subject.calls(rows=[8], cases=1):
        yield from _repeatable(subject, call)


def _code(error: Exception) -> str:
    """What torch refuses in eager mode already and has a code of its own: aliases of a custom_op, mixed devices."""
    if "may not alias any inputs" in str(error):
        return "AL_INPUT_OUTPUT" if _returns_an_input(error) else "AL_OUTPUTS_SHARE"
    if "all tensors to be on the same device" in str(error):
        return "CG_CPU_TENSOR"
    return "EAGER_ERROR"


def _returns_an_input(error: Exception) -> bool:
    """Whether the call that torch refused returned memory of its arguments, from the frame that refused it: the text is
    the same for outputs that share memory with each other."""
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    call = next((f for f in reversed(frames) if {"args", "kwargs", "result"} <= f.keys()), None)
    if call is None:
        return True
    given = {t.untyped_storage()._cdata for t in tensors((call["args"], call["kwargs"]))}
    return any(t.untyped_storage()._cdata in given for t in tensors(call["result"]))


def _explained(subject: Subject, call: Call, judge: Judge, wrong: str, first: tuple[Call, Any]) -> Finding:
    """Wrong because of parameters whose old values were kept, of noise, of earlier calls, or simply wrong."""
    blind = blind_parameter(subject, call)
    if blind is not None and (keeps_initial_values(subject, call) or _right_when_fresh(subject, call, judge)):
        text = f"{wrong}; the result does not change with the parameter {blind}, the reference's does"
        return Finding(code="ST_STALE_WEIGHT", bucket=str(call), evidence=Evidence(text=text, node=blind))
    again = warm(subject.build(first[0]), subject.draw(first[0]))
    fresh = [warm(subject.build(call), subject.draw(call)) for _ in range(2)]
    if not (same_bits(again, first[1]) and same_bits(*fresh)):
        code, why = _cause(subject, call)
        return Finding(code=code, bucket=str(call), evidence=Evidence(text=f"{wrong}; equal calls differ: {why}"))
    if judge.wrong(fresh[0]) is None:
        text = f"after earlier calls: {wrong}; alone on a fresh module the result is right"
        return Finding(code="ST_HISTORY", bucket=str(call), evidence=Evidence(text=text))
    return Finding(code="PARITY", bucket=str(call), evidence=Evidence(text=wrong))


def _right_when_fresh(subject: Subject, call: Call, judge: Judge) -> bool:
    return judge.wrong(warm(subject.build(call), subject.draw(call))) is None


def _repeatable(subject: Subject, call: Call) -> Iterator[Finding]:
    """Equal inputs give equal bits, also after other inputs, and at an address that held others before."""
    module = subject.build(call)

    def run(target: nn.Module, seed: int = 0) -> Any:
        return warm(target, subject.draw(call, seed=seed))

    try:
        first = run(module)
        again = [run(module) for _ in range(REPEATS - 1)]
        reused = subject.draw(call, seed=1)
        run(module, seed=1)
        after_other = run(module)
        warm(module, reused)
        refilled = _refill(reused, subject.draw(call))
        at_same_address = warm(module, reused) if refilled else first
        module = subject.build(call)
        warm(module, _small(subject.draw(call, seed=1)))  # what is calibrated by its first call, is by this one
        calibrated = run(module)
    except Exception:  # noqa: BLE001 - reported by the parity checks above
        return
    reference = subject.reference(call)
    if not same_bits(run(reference), run(reference)):
        return
    differs = [i + 2 for i, other in enumerate(again) if not same_bits(first, other)]
    if differs:
        code, why = _cause(subject, call)
        text = f"equal calls differ bitwise: call {differs[0]} of {REPEATS}; {why}"
    elif not same_bits(first, after_other):
        code, text = "ST_HISTORY", "the same input gives another result after a call with another input"
    elif not same_bits(first, calibrated):
        code, text = "ST_HISTORY", "the same input gives another result where the first call had smaller values"
    elif not same_bits(first, at_same_address):
        code, text = "ST_HISTORY", "new contents at an address seen before give the result of the old contents"
    else:
        return
    yield Finding(code=code, bucket=str(call), evidence=Evidence(text=text))


def _cause(subject: Subject, call: Call) -> tuple[str, str]:
    """State or noise? With every generator reset before each call, and the whole sequence run twice."""

    def sequence() -> list[Any]:
        module = subject.build(call)
        results = []
        for _ in range(3):
            torch.manual_seed(0)
            random.seed(0)
            results.append(warm(module, subject.draw(call)))
        return results

    one, two = sequence(), sequence()
    if same_bits(one[0], one[1]) and same_bits(one[1], one[2]):
        return "ND_NONDET", "equal again when torch's and Python's generators are reset before each call"
    if all(same_bits(a, b) for a, b in zip(one, two, strict=True)):
        return "ST_HISTORY", "a fresh module repeats the same sequence: the state is in the module"
    if _moves_steadily(one + two):
        return "ST_HISTORY", "a fresh module goes on where the other stopped: the state is outside the module"
    return "ND_NONDET", "not repeated by a fresh module"


def _moves_steadily(results: list[Any]) -> bool:
    """Whether a scale of the results moves one way only, as with a counter or a running statistic."""
    sizes = [sum(float(t.double().abs().sum()) for t in tensors(r) if t.is_floating_point()) for r in results]
    steps = [b - a for a, b in itertools.pairwise(sizes)]
    return all(s > 0 for s in steps) or all(s < 0 for s in steps)


def _small(arguments: Any) -> Any:
    """Floating tensors scaled down by a power of two."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t / 64 if t.is_floating_point() else t, arguments)


def _refill(held: Any, fresh: Any) -> bool:
    """Puts the new contents into the old tensors; False where there is nothing to refill."""
    old, new = tensors(held), tensors(fresh)
    with torch.no_grad():
        for o, n in zip(old, new, strict=True):
            o.copy_(n)
    return leading(copied(held)) is not None
