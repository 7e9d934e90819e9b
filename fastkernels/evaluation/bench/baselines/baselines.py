"""What a candidate has to beat: the reference, the reference compiled, and what production libraries ship for it.

A library's kernel is a class of the task's interface, marked as candidates are, in a module named for its library."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fastkernels.runtime.candidate import DECLARATION, as_candidate
from fastkernels.tasks import Task

PACKAGE = "fastkernels.evaluation.bench.baselines"
# One module a library, with the name by which Python finds the library itself.
LIBRARIES: Mapping[str, str] = {
    "torch_ops": "torch",
    "vllm_ops": "vllm",
    "flash_attention_ops": "vllm",
    "flashinfer_ops": "flashinfer",
    "liger_ops": "liger_kernel",
    "fla_ops": "fla",
    "deep_gemm_ops": "deep_gemm",
}


@dataclass(frozen=True, kw_only=True)
class ImplementationSpec:
    """An implementation that another process can import: class ``cls`` of ``module``, compiled or as it is."""

    name: str
    module: str
    cls: str
    compiled: bool = False

    def load(self) -> type[nn.Module]:
        """The class; its library is imported when it is built."""
        return getattr(importlib.import_module(self.module), self.cls)


def baselines_for(
    task: Task, device: torch.device, dtype: torch.dtype, facts: Mapping[str, Any]
) -> list[ImplementationSpec]:
    """Baselines of ``task`` for a site, the reference first, then the reference compiled.

    A library that is installed but has no kernel for this machine raises when its class is built or called, and so
    does one that does not take certain arguments: such a baseline is absent there, which is not a failure.

    Args:
        facts: constructor arguments by name; what is left out has its default.

    >>> from fastkernels.tasks import get_task
    >>> task = get_task("rms_norm")
    >>> [b.name for b in baselines_for(task, torch.device("cpu"), torch.float32, {"hidden_size": 64})][:3]
    ['reference', 'compiled', 'TorchRMSNorm']
    """
    where = {"module": task.interface.__module__, "cls": task.interface.__qualname__}
    found = [
        ImplementationSpec(name="reference", **where),
        ImplementationSpec(name="compiled", **where, compiled=True),
    ]
    for spec, library, cls in _production(task):
        if _refusal(library, cls, task, device, dtype, facts) is None:
            found.append(spec)
    return found


def absent_baselines(task: Task, device: torch.device, dtype: torch.dtype, facts: Mapping[str, Any]) -> dict[str, str]:
    """Why each known production kernel of ``task`` is not among ``baselines_for``, by name."""
    reasons = {
        spec.name: _refusal(library, cls, task, device, dtype, facts) for spec, library, cls in _production(task)
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def production_specs() -> Iterator[tuple[Task, ImplementationSpec]]:
    """Every production kernel that is known, installed or not, with its task."""
    for name in LIBRARIES:
        module = importlib.import_module(f"{PACKAGE}.{name}")
        for cls in _marked(module):
            yield as_candidate(cls).task, _spec(cls)


def _production(task: Task) -> Iterator[tuple[ImplementationSpec, str, type[nn.Module]]]:
    for name, library in LIBRARIES.items():
        for cls in _marked(importlib.import_module(f"{PACKAGE}.{name}")):
            if vars(cls)[DECLARATION][0] == task.name:
                yield _spec(cls), library, cls


def _marked(module: ModuleType) -> list[type[nn.Module]]:
    return [
        v
        for v in vars(module).values()
        if isinstance(v, type) and DECLARATION in vars(v) and v.__module__ == module.__name__
    ]


def _spec(cls: type[nn.Module]) -> ImplementationSpec:
    return ImplementationSpec(name=cls.__name__, module=cls.__module__, cls=cls.__name__)


def _refusal(
    library: str,
    cls: type[nn.Module],
    task: Task,
    device: torch.device,
    dtype: torch.dtype,
    facts: Mapping[str, Any],
) -> str | None:
    if importlib.util.find_spec(library) is None:
        return f"{library} is not installed"
    bound = inspect.signature(task.interface).bind(**facts)
    bound.apply_defaults()
    return as_candidate(cls).supports.refusal(device=device, dtype=dtype, facts=dict(bound.arguments))
