"""Patches the model of one worker as the operator asked, or stops the engine, or says that it serves unpatched."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from torch import nn

import fastkernels
from fastkernels.errors import FastkernelsError, ServingError
from fastkernels.patches.patch import Patch, patch
from fastkernels.patches.site import Site
from fastkernels.serving.lock import check
from fastkernels.serving.settings import Settings
from fastkernels.serving.standing import Standing
from fastkernels.serving.worker_report import WorkerReport

LOGGER = logging.getLogger("fastkernels")


def stand(
    model: nn.Module,
    settings: Settings,
    *,
    engine: Literal["vllm", "sglang"],
    version: str,
    rank: int,
    world_size: int,
    compilation: str,
    lowering: Literal["auto", "inline", "opaque"],
    name: str = "target",
    context: AbstractContextManager[Any] | None = None,
) -> Standing:
    """Puts the operator's candidates into a worker's model, between its loading and its first compilation.

    Args:
        compilation: how the engine will run the model, in words.
        lowering: how its compiled graphs are to hold candidates, unless the operator says.
        name: ``target``, or ``draft``.
        context: what the engine's modules need around a call outside a step; probes run inside it.

    Raises:
        ServingError: the candidates are not there, not those of the lock, refused, or apply nowhere, and ``on_error``
            is ``stop``. With ``serve`` the same is logged as an error and reported, and the model is as it was.
    """
    told = WorkerReport(
        engine=engine,
        version=version,
        pid=os.getpid(),
        rank=rank,
        world_size=world_size,
        model=name,
        state="watching",
        candidates=settings.candidates,
        compilation=compilation,
    )
    if settings.candidates is None:
        standing = Standing(model=model, handle=None, told=told, report_dir=settings.report_dir)
        standing.write()
        return standing
    try:
        if settings.lock is not None:
            check(settings.candidates, settings.lock)
        with context or nullcontext():
            handle = patch(
                model,
                settings.candidates,
                select=_selected(settings),
                verify=settings.verify,
                lowering=settings.lowering or lowering,
            )
    except FastkernelsError as error:
        reason = f"{type(error).__name__}: {error}"
        told = told.model_copy(update={"state": "unpatched", "reason": reason})
        standing = Standing(model=model, handle=None, told=told, report_dir=settings.report_dir)
        standing.write()
        if settings.on_error == "stop":
            raise ServingError(
                f"{engine} {version}, rank {rank} of {world_size}: {reason}\n"
                f"The engine does not start. FASTKERNELS_ON_ERROR=serve would start it unpatched."
            ) from error
        LOGGER.error("%s", told.summary)
        LOGGER.error("fastkernels_patched{engine=%s,rank=%d} 0", engine, rank)
        return standing
    told = told.model_copy(update={"state": "patched", "digest": digest_of(handle)})
    standing = Standing(model=model, handle=handle, told=told, report_dir=settings.report_dir)
    standing.write()
    LOGGER.warning("%s", standing.report().summary)
    return standing


def _selected(settings: Settings) -> Any:
    if settings.sites is None:
        return list(settings.select) or "all"
    try:
        wanted = {(path, task) for path, task in json.loads(settings.sites.read_text())}
    except (OSError, ValueError) as error:
        raise ServingError(f"FASTKERNELS_SITES={settings.sites}: not a list of [path, task]: {error}") from error

    def chosen(site: Site) -> bool:
        return (site.path, site.task.name) in wanted

    return chosen


def digest_of(handle: Patch) -> str:
    """Hash of everything that a compiled graph may hold of this patch: sites, candidates by content, how they are
    lowered, and this library's own files, for their code is traced too."""
    report = handle.report
    held = [(s.path, s.task, s.state, s.candidate, s.lowering, s.lowering_inside) for s in report.sites]
    operators = sorted(
        op.name()
        for d in handle.dispatchers.values()
        for lowered in d.binding.lowered.values()
        if lowered.op is not None
        for op in lowered.op.ops.values()
    )
    parts: list[Any] = [held, [(c.task, c.digest) for c in report.candidates], operators, own_digest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def own_digest() -> str:
    """Hash of this library's own files that take part in a call."""
    root = Path(fastkernels.__file__).parent
    files = sorted(f for part in ("patches", "runtime", "tasks") for f in (root / part).rglob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
