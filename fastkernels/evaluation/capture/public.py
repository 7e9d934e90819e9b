"""The public benchmark's capture JSON: written from a capture, and read as one."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.recipe import LONGEST, dtype_of
from fastkernels.evaluation.capture.record import (
    Argument,
    Capture,
    GraphCheck,
    ItemsFact,
    ObjectFact,
    SiteRecord,
    TensorFact,
    Variant,
)
from fastkernels.evaluation.whole_file import whole_file
from fastkernels.tasks import Task, get_task
from fastkernels.tasks.registry import task_for_stem

OPERATOR = re.compile(r"fastkernels\.tasks\.baseline\.L(\d)\.(\w+):(\w+)")
LONGEST_LIST = 8
EAGER = "_eager.json"  # how every file's name ends
KINDS = ("module", "object", "dtype", "list", "dict")


class _Calls(BaseModel):
    calls: int
    variants: list[dict[str, Any]]


class _Operator(BaseModel):
    init: _Calls
    forward: _Calls


class _Public(BaseModel):
    """The parts that are read; others may be there."""

    model_config = ConfigDict(extra="allow")

    model: str
    workload: str
    dtype: str
    engine: str
    operators: dict[str, dict[str, Any]]
    captured_at: str = ""
    max_batch_size: int = 0
    generation: dict[str, Any] = {}
    verification: dict[str, Any] = {}


def as_public(capture: Capture) -> dict[str, Any]:
    """The capture in the public format. Sites are merged by task: that format knows no paths, and no phases."""
    operators: dict[str, Any] = dict(capture.foreign)
    open_sites = [site for site in capture.sites if not site.gated]
    for name in dict.fromkeys(site.task for site in open_sites):
        task = get_task(name)
        operators[operator_of(task)] = _operator([site for site in open_sites if site.task == name])
    graph = capture.graph
    return {
        "model": capture.model,
        "workload": capture.workload,
        "dtype": f"torch.{capture.dtype}",
        "engine": capture.engine,
        "captured_at": capture.captured_at,
        "max_batch_size": capture.max_batch,
        "generation": capture.generation,
        "verification": _verification(graph),
        "num_operator_classes_instrumented": len(operators),
        "num_operator_classes_executed": sum(o.get("forward", {}).get("calls", 0) > 0 for o in operators.values()),
        "operators": operators,
    }


def _verification(graph: GraphCheck | None) -> dict[str, Any]:
    if graph is None:
        return {"passed": None}
    return graph.told or {"passed": graph.passed, "detail": graph.detail}


def _told(verification: dict[str, Any]) -> GraphCheck | None:
    """What the file says of its graphs; None where it says nothing."""
    passed = verification.get("passed")
    others = {name: value for name, value in verification.items() if name != "passed" and value}
    if passed is None and not others:
        return None
    detail = verification.get("detail") or ", ".join(f"{name}: {value}" for name, value in others.items())
    passed = passed if isinstance(passed, bool) else None
    return GraphCheck(kind="told", passed=passed, detail=str(detail), told=verification)


def write_public(capture: Capture, file: str | Path) -> None:
    """Writes ``as_public`` as JSON, whole or not at all."""
    with whole_file(Path(file).expanduser()) as path:
        path.write_text(json.dumps(as_public(capture), indent=1) + "\n")


def public_name(capture: Capture, *, requests: int, seqs: int | None = None, layers: int | None = None) -> str:
    """File name in the public benchmark's convention."""
    model, cut = capture.model.replace("/", "__"), f"_L{layers}" if layers is not None else ""
    return (
        f"{model}_tp{capture.world_size}_{capture.dtype}_{capture.workload or 'live'}_req{requests}"
        f"_seqs{seqs if seqs is not None else 'auto'}{cut}{EAGER}"
    )


def operator_of(task: Task) -> str:
    """The public benchmark's name of a task's class."""
    return f"fastkernels.tasks.baseline.L{task.level}.{task.name}:{task.interface.__name__}"


def _operator(sites: list[SiteRecord]) -> dict[str, Any]:
    inits = list({json.dumps(site.facts): site.facts for site in sites}.values())
    forwards: dict[str, tuple[dict[str, Any], Counter[int]]] = {}
    for site in sites:
        for variant in site.variants:
            args = {name: summary(value) for name, value in variant.arguments.items()}
            _, counts = forwards.setdefault(json.dumps(args), (args, Counter()))
            counts[inits.index(site.facts)] += variant.total
    built: Counter[int] = Counter()
    for site in sites:
        built[inits.index(site.facts)] += site.copies
    return {
        "init": {
            "calls": sum(site.copies for site in sites),
            "variants": [{"count": built[i], "args": facts} for i, facts in enumerate(inits)],
        },
        "forward": {
            "calls": sum(counts.total() for _, counts in forwards.values()),
            "variants": [
                {"count": counts.total(), "args": args, "init_variant_ids": sorted(counts)}
                for args, counts in forwards.values()
            ],
        },
    }


def summary(argument: Argument) -> Any:
    """An argument as a SUMMARY of the public format.

    >>> summary(TensorFact(shape=(2, 3), dtype="bfloat16", stride=(3, 1), device="cpu"))
    {'shape': [2, 3], 'dtype': 'torch.bfloat16', 'stride': [3, 1], 'device': 'cpu'}
    """
    if isinstance(argument, TensorFact):
        stride = {} if argument.stride is None else {"stride": list(argument.stride)}
        device = {} if argument.device is None else {"device": argument.device}
        return {"shape": list(argument.shape), "dtype": f"torch.{argument.dtype}", **stride, **device}
    if isinstance(argument, ItemsFact):
        few = len(argument.items) <= LONGEST_LIST
        return [summary(item) for item in argument.items] if few else {"list": len(argument.items)}
    if isinstance(argument, ObjectFact):
        kind, _, held = argument.object.partition(":")
        if not held or kind not in KINDS:
            return {"object": argument.object}
        return {kind: int(held) if held.isdigit() else held}
    return argument[:LONGEST] if isinstance(argument, str) else argument


def argument_of(told: Any) -> Argument:
    """The argument of a SUMMARY.

    >>> argument_of({"shape": [4], "dtype": "torch.int64", "device": "cuda:0"})
    TensorFact(shape=(4,), dtype='int64', stride=None, device='cuda')
    """
    if isinstance(told, list):
        return ItemsFact(items=tuple(argument_of(t) for t in told))
    if not isinstance(told, dict):
        return told
    if "shape" in told:
        stride = told.get("stride")
        return TensorFact(
            shape=tuple(told["shape"]),
            dtype=str(told["dtype"]).removeprefix("torch."),
            stride=tuple(stride) if stride is not None else None,
            device=str(told["device"]).partition(":")[0] if told.get("device") else None,
        )
    if len(told) == 1 and (kind := next(iter(told))) in KINDS:
        return ObjectFact(object=told[kind] if kind == "object" else f"{kind}:{told[kind]}")
    return ObjectFact(object=f"dict:{len(told)}")


def read_public(text: str) -> Capture:
    """A public capture as ours. Each operator of a task is a site for each of its constructor calls; phases are not
    known, and operators without a task are kept in ``foreign``.

    Raises:
        EvaluationError: it is no capture in that format.
    """
    try:
        told = _Public.model_validate_json(text)
        dtype_of(told.dtype)
        sites, foreign = [], {}
        for name, given in told.operators.items():
            found = OPERATOR.fullmatch(name)
            task = task_for_stem(int(found[1]), found[2]) if found is not None else None
            if task is None:
                foreign[name] = given
            else:
                sites += _sites(name, task, _Operator.model_validate(given))
        return Capture(
            model=told.model,
            cls="",
            engine=told.engine,
            dtype=told.dtype.removeprefix("torch."),
            device=next(_devices(sites), "cpu"),
            workload=told.workload,
            captured_at=told.captured_at,
            max_batch=told.max_batch_size,
            generation=told.generation,
            sites=sites,
            foreign=foreign,
            graph=_told(told.verification),
        )
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EvaluationError(f"capture: not in the public benchmark's format: {reason}. Capture it again.") from None


def _sites(name: str, task: Task, operator: _Operator) -> list[SiteRecord]:
    sites = [
        SiteRecord(
            path=f"{name}#{i}",
            cls=task.interface.__name__,
            task=task.name,
            level=task.level,
            facts=init["args"],
            copies=init.get("count", 1),
        )
        for i, init in enumerate(operator.init.variants)
    ]
    for variant in operator.forward.variants:
        ids = variant.get("init_variant_ids") or list(range(min(1, len(sites))))
        arguments = {n: argument_of(a) for n, a in variant["args"].items()}
        for turn, i in enumerate(ids):  # it tells one count for all of them
            count = variant["count"] // len(ids) + (turn < variant["count"] % len(ids))
            sites[i].variants.append(Variant(arguments=arguments, calls={"forward": count}))
    return sites


def _devices(sites: list[SiteRecord]) -> Any:
    for site in sites:
        for variant in site.variants:
            yield from (a.device for a in variant.arguments.values() if isinstance(a, TensorFact) and a.device)
