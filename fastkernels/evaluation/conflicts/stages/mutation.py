"""mutation: what is written and what is shared, by module and by operator: contents, version counters, storages."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.evaluation.conflicts.compare import copied, same_bits
from fastkernels.evaluation.conflicts.observe import Seen, Watch
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors


def check_mutation(subject: Subject) -> Iterator[Finding]:
    """Every representative in every bucket; operators first, they are closer to the cause."""
    for call in subject.calls():
        module = subject.build(call)
        allowed = _pairs(subject, subject.reference(call), call)
        yield from _module(subject, module, call, allowed)
        yield from _persistent(subject, module, call)


def _operator(seen: Seen, bucket: str) -> Iterator[Finding]:
    """One operator call against its schema: writes and aliases that it does not declare."""
    declared, given = _declared(seen)
    where = seen.where.model_copy(update={"node": seen.name})
    for i in seen.written:
        if not declared[i]:
            text = f"{seen.name} writes its tensor argument {i}; its schema says {seen.op._schema}"
            yield Finding(code="MU_UNDECLARED", bucket=bucket, evidence=where.model_copy(update={"text": text}))
    if any(r.alias_info is not None for r in seen.op._schema.returns):
        return
    outputs = tensors(seen.result)
    for o, out in enumerate(outputs):
        if any(_overlap(out, g) for g in given):
            text = f"{seen.name}: output {o} lies in the memory of an argument; its schema says {seen.op._schema}"
            yield Finding(code="AL_INPUT_OUTPUT", bucket=bucket, evidence=where.model_copy(update={"text": text}))
        if any(_same_storage(out, other) for other in outputs[:o]):
            text = f"{seen.name}: output {o} shares the storage of another output; its schema says {seen.op._schema}"
            yield Finding(code="AL_OUTPUTS_SHARE", bucket=bucket, evidence=where.model_copy(update={"text": text}))


def _declared(seen: Seen) -> tuple[list[bool], list[torch.Tensor]]:
    """For each tensor argument whether the schema declares it written, and the tensors as they were handed over."""
    flags: list[bool] = []
    for argument, value in zip(seen.op._schema.arguments, seen.args, strict=False):
        written = argument.alias_info is not None and argument.alias_info.is_write
        flags += [written] * len(tensors(value))
    for argument in seen.op._schema.arguments[len(seen.args) :]:
        written = argument.alias_info is not None and argument.alias_info.is_write
        flags += [written] * len(tensors(seen.kwargs.get(argument.name)))
    return flags, list(seen.handed)


def _module(subject: Subject, module: nn.Module, call: Call, allowed: set[tuple[int, str]]) -> Iterator[Finding]:
    """The module against the task: arguments and parameters written, outputs in their memory or in each other's."""
    arguments = subject.draw(call)
    named = _named(subject, module, arguments)
    before = {name: (t.clone(), t._version) for name, t in named}
    with torch.no_grad(), Watch() as watch:
        outputs = tensors(module(*arguments))
    for seen in watch.foreign():
        yield from _operator(seen, str(call))
    for name, t in named:
        value, version = before[name]
        if name.split("[")[0] in subject.task.mutates or name.startswith("buffer "):
            continue
        if not same_bits(value, t):
            text = f"{name} has other contents after the call; {subject.task.name} writes {_says(subject)}"
        elif t._version != version:
            text = f"{name} was written in place and restored (version {version} to {t._version})"
        else:
            continue
        where = _writer(watch.seen, t).model_copy(update={"text": text, "node": name})
        yield Finding(code="MU_UNDECLARED", bucket=str(call), evidence=where)
    for o, name in sorted(_aliases(outputs, named) - allowed):
        text = f"output {o} lies in the memory of {name}; the reference's does not"
        yield Finding(code="AL_INPUT_OUTPUT", bucket=str(call), evidence=Evidence(text=text, node=name))
    with torch.no_grad():
        own = tensors(subject.reference(call)(*subject.draw(call)))
    for o, out in enumerate(outputs):
        for p in range(o):
            if _overlap(out, outputs[p]) and not (o < len(own) and _overlap(own[o], own[p])):
                text = f"outputs {p} and {o} share memory; the reference's do not"
                yield Finding(code="AL_OUTPUTS_SHARE", bucket=str(call), evidence=Evidence(text=text))


def _writer(seen: list[Seen], written: torch.Tensor) -> Evidence:
    """The candidate's line whose operator declares a write into the memory of ``written``, if any does."""
    for call in seen:
        for argument, value in zip(call.op._schema.arguments, call.args, strict=False):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes and any(_same_storage(t, written) for t in tensors(value)):
                return call.where
    return Evidence()


def _says(subject: Subject) -> str:
    return ", ".join(subject.task.mutates) or "nothing"


def _persistent(subject: Subject, module: nn.Module, call: Call) -> Iterator[Finding]:
    """A first result must survive a second call with other values."""
    with torch.no_grad():
        first = module(*subject.draw(call))
        kept = copied(first)
        second = module(*subject.draw(call, seed=1))
    if not same_bits(first, kept):
        text = "the first result changed during the second call"
    elif any(_overlap(a, b) for a in tensors(first) for b in tensors(second) if not _is_parameter(module, a)):
        text = "two calls returned the same memory"
    else:
        return
    yield Finding(code="AL_PERSISTENT_OUTPUT", bucket=str(call), evidence=Evidence(text=text))


def _is_parameter(module: nn.Module, t: torch.Tensor) -> bool:
    return any(_same_storage(t, p) for p in module.parameters())


def _named(subject: Subject, module: nn.Module, arguments: tuple[Any, ...]) -> list[tuple[str, torch.Tensor]]:
    """Tensors that the call can reach, by name: arguments (a nested one with its index), parameters, buffers."""
    names = list(inspect.signature(subject.task.interface.forward).parameters)[1:]
    found = []
    for i, argument in enumerate(arguments):
        name = names[i] if i < len(names) else f"argument {i}"
        leaves = tensors(argument)
        found += [(name if len(leaves) == 1 else f"{name}[{k}]", t) for k, t in enumerate(leaves)]
    found += [(f"parameter {n}", p) for n, p in module.named_parameters()]
    return found + [(f"buffer {n}", b) for n, b in module.named_buffers()]


def _aliases(outputs: list[torch.Tensor], named: list[tuple[str, torch.Tensor]]) -> set[tuple[int, str]]:
    return {
        (o, name) for o, out in enumerate(outputs) for name, t in named
        if not name.startswith("buffer ") and _overlap(out, t)
    }  # fmt: skip


def _pairs(subject: Subject, reference: nn.Module, call: Call) -> set[tuple[int, str]]:
    arguments = subject.draw(call)
    with torch.no_grad():
        return _aliases(tensors(reference(*arguments)), _named(subject, reference, arguments))


def _same_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.numel() > 0 and b.numel() > 0 and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have a byte in common (exact: interleaved columns of one buffer do not)."""
    if not _same_storage(a, b):
        return False
    mine, theirs = _bytes(a), _bytes(b)
    return bool(torch.isin(mine, theirs).any())


def _bytes(t: torch.Tensor) -> torch.Tensor:
    """Addresses of the elements' first bytes within their storage, in bytes."""
    offsets = torch.tensor(t.storage_offset())
    for size, stride in zip(t.shape, t.stride(), strict=True):
        offsets = offsets.unsqueeze(-1) + torch.arange(size) * stride
    return offsets.flatten() * t.element_size()
