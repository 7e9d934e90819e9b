"""The text of an extracted module that no task describes: the class is imported, the constants are written out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fastkernels.authoring.recipe import EXPERT_IDS, NotPlain, drawn, literal
from fastkernels.authoring.task_file import Source, assemble
from fastkernels.authoring.walk import Call

# Of a config's fields these say nothing of what a module computes.
DESCRIPTIVE = ("transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype")

PLACEMENT = ("device", "dtype")  # of the model that was built: no facts about the module


def imported_file(
    module: nn.Module,
    constructed: Mapping[str, Any],
    call: Call,
    *,
    level: int,
    source: Source,
    dtype: torch.dtype,
    of: torch.dtype,
) -> str:
    """A file whose ``Model`` holds ``module``'s own class, built with the same constants.

    Args:
        constructed: the constructor's arguments, by name.
        call: of the forward pass; what is no tensor in it is written out as a constant.
        dtype, of: as ``task_file`` takes them.

    Raises:
        NotPlain: an argument of the constructor or of the call can be neither written down nor drawn.
    """
    cls = type(module)
    home, name = ("torch", f"nn.{cls.__name__}") if cls.__module__.startswith("torch.nn.") else (cls.__module__, "")
    if "<locals>" in cls.__qualname__ or cls.__module__ == "__main__" or (name and not hasattr(nn, cls.__name__)):
        raise NotPlain(f"{cls.__qualname__} cannot be imported by name")
    imports = ["import torch", "from typing import Any", "import argparse", "from torch import nn"]
    if not name:
        name = cls.__qualname__
        imports.append(f"from {home} import {name.partition('.')[0]}")
    constants, arguments = _constructor(constructed, imports)
    given, fixed = _call(module, call)
    width = getattr(module, "num_embeddings", None) or next(
        (part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding)), None
    )
    high = {"": width} if width else {}
    experts = getattr(module, "num_experts", None)
    if isinstance(experts, int):
        high |= dict.fromkeys(EXPERT_IDS, experts)
    draws = [line for n, v in given.items() for line in drawn(n, v, dtype=of, high=high)]
    names = ", ".join(f"{n}: Any" for n in given)
    passed = _passed(module, call, given, fixed)
    origin = home.partition(".")[0]
    needs = "torch" if origin == "torch" else f"torch and {origin}"
    doc = f"""{cls.__name__} (L{level}), extracted by `fastkernels extract`: no task describes it.

From {source.sentence()}
Its source is not repeated here: the class is imported from {origin} by name and built with the model's constants.
Needs {needs}. Run it: `python FILE [--device cuda]` prints shapes and ok."""
    return assemble(
        doc=doc,
        imports=imports,
        constants="\n".join([*constants, f"DTYPE = {dtype}"]),
        body=f'''class Model(nn.Module):
    """{cls.__name__} of {origin} with the constants above; its parameters are under ``module``."""

    def __init__(self) -> None:
        super().__init__()
        self.module = {name}({arguments})

    def forward(self, {names}) -> Any:
        return self.module({passed})''',
        init=(),
        draws=draws,
        returned=list(given),
        # A table's rows are what positions say, and some read no more of their input than its shape.
        random=level > 1 or not any("position" in n for n in (*given, cls.__name__.lower())),
    )


def _passed(module: nn.Module, call: Call, given: Mapping[str, Any], fixed: Mapping[str, Any]) -> str:
    """The arguments of the module's call, by position where the model gives them so: what wraps a forward may have
    other names for them."""
    if any(n.startswith("*") for n in given) or _positional(type(module)):
        return ", ".join(given)
    names = list(inspect.signature(type(module).forward).parameters)[1:][: len(call.args)]
    first = [n if n in given else literal(v, n) for n, v in zip(names, call.args, strict=False)]
    later = [f"{n}={n}" for n in given if n not in names]
    later += [f"{n}={literal(v, n)}" for n, v in fixed.items() if n not in names]
    return ", ".join([*first, *later])


def _positional(cls: type[nn.Module]) -> bool:
    kinds = [p.kind for p in inspect.signature(cls.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _constructor(constructed: Mapping[str, Any], imports: list[str]) -> tuple[list[str], str]:
    """Lines of constants, and the arguments of the constructor's call in terms of them."""
    lines: list[str] = []
    arguments: list[str] = []
    for name, value in constructed.items():
        if name.startswith("*"):
            raise NotPlain(f"the constructor takes {name}")
        constant = name.upper()
        if type(value).__module__.startswith("transformers.") and hasattr(value, "to_diff_dict"):
            cls = type(value).__name__
            imports.append(f"from {type(value).__module__} import {cls}")
            fields = {k: v for k, v in value.to_diff_dict().items() if k not in DESCRIPTIVE}
            lines.append(f"{constant} = {cls}(**{literal(fields, name)})")
            lines.append(f"{constant}._attn_implementation = {value._attn_implementation!r}")
        elif name in PLACEMENT:
            continue
        else:
            lines.append(f"{constant} = {literal(value, name)}")
        arguments.append(f"{name}={constant}")
    return lines, ", ".join(arguments)


def _call(module: nn.Module, call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments that hold tensors, and plain ones; None only where the module insists on being given it."""
    parameters = inspect.signature(type(module).forward).parameters
    names = [p.name for p in list(parameters.values())[1:] if p.kind is not p.VAR_POSITIONAL]
    if len(call.args) > len(names):
        names = [f"input_{i}" for i in range(len(call.args))]
    bound = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
    given = {n: v for n, v in bound.items() if _holds_tensor(v)}
    fixed = {
        n: v
        for n, v in bound.items()
        if n not in given and (v is not None or (n in parameters and parameters[n].default is inspect.Parameter.empty))
    }
    if not given:
        raise NotPlain("it is called without a tensor")
    return given, fixed


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (
        isinstance(value, (tuple, list)) and any(isinstance(v, torch.Tensor) for v in value)
    )
