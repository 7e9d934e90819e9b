"""backward: gradients against the reference's, eager and compiled; for inference candidates only a remark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.evaluation.conflicts.capture import Uncapturable, compiled
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors
from fastkernels.tasks.accuracy import measure

Gradients = dict[str, torch.Tensor | None]


def check_backward(subject: Subject) -> Iterator[Finding]:
    """Gradients of every floating argument and parameter, for the same upstream gradient."""
    declared = subject.candidate.supports.training
    asked = [c for c in subject.calls(rows=[8]) if c.dtype == torch.float32]
    if not asked:
        raise Skip("float32 is not supported")
    found = False
    for call in asked:
        reference = subject.reference(call)
        want = _gradients(subject, call, reference, reference)
        module = subject.build(call)
        ways: list[tuple[str, nn.Module, Any]] = [("eager", module, module)]
        if declared:
            module = subject.build(call)
            ways.append(("compiled", module, compiled(module, "aot_eager")))
        for how, module, function in ways:
            for finding in _compared(subject, call, how, (module, function), want):
                found = True
                yield finding.model_copy(update={"advisory": not declared})
    if not declared and not found:
        raise Skip("training is not declared; the gradients are there")


def _compared(
    subject: Subject, call: Call, how: str, built: tuple[nn.Module, Any], want: Gradients
) -> Iterator[Finding]:
    try:
        got = _gradients(subject, call, *built)
    except Uncapturable as error:
        raise Skip(f"not captured: {error}") from error
    except Exception as error:  # noqa: BLE001 - a backward may raise anything; that is the finding
        yield Finding(code="AG_NO_BACKWARD", bucket=f"{call} {how}", evidence=frame_of(error))
        return
    for name, wanted in want.items():
        gradient = got.get(name)
        if wanted is None:
            continue
        if gradient is None:
            text = f"{how}: no gradient of {name}; the reference has one"
            yield Finding(code="AG_MISSING", bucket=f"{call} {how}", evidence=Evidence(text=text, node=name))
        elif (off := measure(gradient, wanted)).l2 > 1e-3:
            text = f"{how}: gradient of {name} is off by {off}"
            yield Finding(code="AG_WRONG_GRAD", bucket=f"{call} {how}", evidence=Evidence(text=text, node=name))


def _gradients(subject: Subject, call: Call, module: nn.Module, function: Any) -> Gradients:
    """Gradients by name; None where nothing flows. ``function`` calls ``module``, whose parameters are asked for too.
    Raises what the backward raises."""
    arguments = pytree.tree_map_only(
        torch.Tensor, lambda t: t.requires_grad_() if t.is_floating_point() else t, subject.draw(call)
    )
    outputs = [o for o in tensors(function(*arguments)) if o.is_floating_point() and o.requires_grad]
    leaves = {f"argument {i}": t for i, t in enumerate(tensors(arguments)) if t.requires_grad}
    leaves |= dict(module.named_parameters())
    if not outputs:
        return dict.fromkeys(leaves)
    generator = torch.Generator().manual_seed(5)
    upstream = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), upstream, allow_unused=True)
    return dict(zip(leaves, grads, strict=True))
