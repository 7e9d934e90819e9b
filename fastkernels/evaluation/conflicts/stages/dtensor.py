"""dtensor: parameters and arguments as distributed tensors of a group of one rank."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.utils import _pytree as pytree

from fastkernels.evaluation.conflicts.compare import close, copied
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors


def check_dtensor(subject: Subject) -> Iterator[Finding]:
    """A remark: whether tensors are distributed is the host's choice."""
    for call in subject.calls(rows=[8]):
        if call.dtype != subject.dtypes[0]:
            continue
        evidence = _apart(subject, call, subject.build)
        if evidence is None:
            continue
        if _apart(subject, call, subject.reference) is not None:
            raise Skip("the reference does not take distributed tensors either")
        yield Finding(code="SUB_DTENSOR", bucket=str(call), evidence=evidence, advisory=True)


def _apart(subject: Subject, call: Call, build: Callable[[Call], nn.Module]) -> Evidence | None:
    """What goes wrong, in a process of its own: a kernel that takes the address of such a tensor, 0, dies of it."""
    if subject.device.type != "cpu":  # a device does not survive a fork, and an address of 0 there only raises
        try:
            return _wrong(subject, call, build)
        except Exception as error:
            raise Skip(f"no distributed tensors here: {frame_of(error).text.splitlines()[0]}") from error
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            found = _wrong(subject, call, build)
            os.write(writer, found.model_dump_json().encode() if found is not None else b"")
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return Evidence(text=f"died by {name}: the address of a distributed tensor is 0")
    if os.WEXITSTATUS(status):
        raise Skip("no distributed tensors here: a group of one rank, or its tensors, cannot be made")
    return Evidence.model_validate_json(said) if said else None


def _wrong(subject: Subject, call: Call, build: Callable[[Call], nn.Module]) -> Evidence | None:
    with torch.no_grad():
        eager = copied(tensors(build(call)(*subject.draw(call))))
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = DeviceMesh(subject.device.type, [0])

    def distributed(t: torch.Tensor) -> DTensor:
        return DTensor.from_local(t, mesh, [Replicate()], run_check=False)

    module = build(call)
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            part.register_parameter(name, nn.Parameter(distributed(parameter.data), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, distributed(buffer))
    arguments = pytree.tree_map_only(torch.Tensor, distributed, subject.draw(call))
    try:
        with torch.no_grad():
            results: Any = tensors(module(*arguments))
    except Exception as error:  # noqa: BLE001 - a candidate may raise anything; that is the finding
        return frame_of(error)
    plain = [r.full_tensor() if isinstance(r, DTensor) else r for r in results]
    wrong = close(plain, eager, subject, call.dtype)
    return None if wrong is None else Evidence(text=f"on distributed tensors: {wrong}")
