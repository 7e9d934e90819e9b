"""Do the graphs that production runs see the calls of the eager pass? What Dynamo traces, beside what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from fastkernels.evaluation.capture.graph_isolation import isolated
from fastkernels.evaluation.capture.recipe import name_of
from fastkernels.evaluation.capture.record import Argument, GraphCheck, SiteRecord, TensorFact
from fastkernels.evaluation.capture.recorder import Recorder
from fastkernels.runtime.own_code import with_own_code

SHOWN = 20  # differences


def check_traced(recorder: Recorder, run: Callable[[], Any], *, compile_it: bool = True) -> GraphCheck:
    """Makes the calls of ``run`` once more through ``torch.compile``, static shapes, and compares site by site.

    Args:
        compile_it: the model's own calls are to be compiled here; else ``run`` calls what is compiled.
    """
    eager = {(s.path, s.task): signatures(s) for s in recorder.sites() if not s.gated}
    recorder.traced()
    with isolated(), recorder.silent(), _compiled(recorder.model) if compile_it else _default():
        run()
    traced = recorder.traced()
    if not any(traced.values()):
        return GraphCheck(kind="traced", passed=None, detail="nothing was traced: the graph pass called no site")
    traced = {key: set(map(normal, seen)) for key, seen in traced.items()}
    apart: dict[str, list[str]] = {}  # layers differ alike: one line for all of them
    for (path, task), seen in eager.items():
        for side, signs in (("only eager", seen - traced[path, task]), ("only in graphs", traced[path, task] - seen)):
            for sign in sorted(signs, key=str):
                apart.setdefault(f"{task}: {side}: {show(sign)}", []).append(path or "(model)")
    differences = [f"{told} at {paths[0]}{_more(paths)}" for told, paths in apart.items()]
    agree = sum(len(seen & traced[key]) for key, seen in eager.items())
    return GraphCheck(
        kind="traced",
        passed=not differences,
        detail=f"{agree} calls (site, shapes, strides, dtypes) are the same in eager and traced passes"
        + (f", {len(differences)} are not" if differences else ""),
        differences=differences[:SHOWN],
    )


def signatures(site: SiteRecord) -> set[Any]:
    """The variants of a site as a trace knows them."""
    return {normal(tuple(map(_signature, variant.arguments.values()))) for variant in site.variants}


def normal(signature: Any) -> Any:
    """Without the strides of axes of one element, which say nothing.

    >>> normal((((2, 1, 8), torch.float32, (8, 3, 1)), None))
    (((2, 1, 8), torch.float32, (8, 0, 1)), None)
    """

    def one(told: Any) -> Any:
        if told is None or told[2] is None:
            return told
        shape, dtype, stride = told
        return shape, dtype, tuple(0 if size == 1 else step for size, step in zip(shape, stride, strict=True))

    return tuple(map(one, signature))


def _more(paths: list[str]) -> str:
    return f" and {len(paths) - 1} more" if len(paths) > 1 else ""


def _signature(argument: Argument) -> Any:
    if not isinstance(argument, TensorFact):
        return None
    return argument.shape, getattr(torch, argument.dtype), argument.stride


def show(signature: Any) -> str:
    """A signature in a line.

    >>> show((((2, 3), torch.float32, (3, 1)), None))
    '(2, 3) float32 (3, 1), -'
    """
    return ", ".join("-" if s is None else f"{s[0]} {name_of(s[1])} {s[2]}" for s in signature)


@contextmanager
def _compiled(model: nn.Module) -> Iterator[None]:
    """``model(...)`` goes through Dynamo, whose graphs then run as Python: its shapes are those of any backend."""
    slots = model.__dict__
    former = slots.get("_compiled_call_impl")
    there = "_compiled_call_impl" in slots
    with _default():
        slots["_compiled_call_impl"] = torch.compile(with_own_code(model._call_impl), backend="eager", dynamic=False)
        try:
            yield
        finally:
            if there:
                slots["_compiled_call_impl"] = former
            else:
                del slots["_compiled_call_impl"]


def _default() -> AbstractContextManager[None]:
    """Compiled calls are compiled."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("default")
    return stance
