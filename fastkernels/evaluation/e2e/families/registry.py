"""The families there are, by the names of their workloads."""

from __future__ import annotations

import functools
import importlib

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.family import Family

MODULES = ("llm", "asr", "encoder", "vision", "signal")
FAMILIES: tuple[type[Family], ...]


def __getattr__(name: str) -> tuple[type[Family], ...]:
    """``FAMILIES``, found at first use: their modules import transformers, which takes seconds."""
    if name == "FAMILIES":
        return _families()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def family_of(workload_name: str, engine: str = "hf") -> Family:
    """The family that serves a workload.

    Args:
        workload_name: ``Family.member``, as in the scenario, or ``Family`` alone.
        engine: of the entry: serving engines give log probabilities where others give logits.

    Raises:
        EvaluationError: no family has the name; the message lists what there is.

    >>> family_of("LLM.mixed").unit
    'tokens'
    """
    wanted = workload_name.partition(".")[0]
    if engine != "hf" and wanted == "LLM":
        return importlib.import_module("fastkernels.evaluation.e2e.engines.family").EngineLLM(engine)
    for family in _families():
        if wanted in family.names:
            return family()
    there = ", ".join(sorted(name for family in _families() for name in family.names))
    raise EvaluationError(f"workload {workload_name}: there is no family {wanted!r}; write one of {there}")


@functools.cache
def _families() -> tuple[type[Family], ...]:
    modules = [importlib.import_module(f"{__package__}.{name}") for name in MODULES]
    return tuple(
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__
        if getattr(value, "names", ())
    )
