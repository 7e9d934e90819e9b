"""Patches the model of one worker as the operator asked, or stops the engine, or says that it serves unpatched."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from torch import nn

from fastkernels.errors import PatchError, ServingError
from fastkernels.patches.compose import selector
from fastkernels.patches.patch import Patch, patch, plan
from fastkernels.patches.site import Site
from fastkernels.runtime.candidate import Lowering
from fastkernels.serving.content import digest_of
from fastkernels.serving.preflight import preflight, selection
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
    lowering: Lowering,
    name: str = "target",
    context: AbstractContextManager[Any] | None = None,
    check: Callable[[Patch], None] | None = None,
    optional: bool = False,
    beside: nn.Module | None = None,
) -> Standing:
    """Puts the operator's candidates into a worker's model, between its loading and its first compilation.

    Args:
        compilation: how the engine will run the model, in words.
        lowering: how its compiled graphs are to hold candidates, unless the operator says.
        name: ``target``, or ``draft``.
        context: what the engine's modules need around a call outside a step; probes run inside it.
        check: raises ServingError where the engine cannot run what now stands; it is then taken out again.
        optional: a model on which no candidate applies (one that drafts for another) is served unpatched, and the
            report says so; a candidate that is refused there still stops the engine.
        beside: another model of this worker, which was patched before; modules that both hold are its own.

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

    def standing(handle: Patch | None, **known: Any) -> Standing:
        made = Standing(model=model, handle=handle, told=told.model_copy(update=known), report_dir=settings.report_dir)
        made.write()
        return made

    if settings.candidates is None:
        return standing(None)
    try:
        handle = _patched(
            model,
            settings,
            settings.lowering or lowering,
            context=context,
            check=check,
            optional=optional,
            beside=beside,
        )
        digest = "" if handle is None else digest_of(handle, settings.candidates)
    # Candidates and an engine's modules are foreign code: whatever they raise, an operator may want to be served.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        unpatched = standing(None, state="unpatched", reason=reason)
        if settings.on_error == "stop":
            raise ServingError(
                f"{engine} {version}, rank {rank} of {world_size}, {name} model: {reason}\n"
                "The engine does not start. FASTKERNELS_ON_ERROR=serve would start it unpatched."
            ) from error
        LOGGER.error("%s", unpatched.report().summary)
        LOGGER.error("fastkernels_patched{engine=%s,rank=%d,model=%s} 0", engine, rank, name)
        return unpatched
    if handle is None:
        made = standing(None, state="unpatched", reason=f"no candidate applies to the {name} model")
    else:
        made = standing(handle, state="patched", digest=digest)
    LOGGER.warning("%s", made.report().summary)
    return made


def _patched(
    model: nn.Module,
    settings: Settings,
    lowering: Lowering,
    *,
    context: AbstractContextManager[Any] | None,
    check: Callable[[Patch], None] | None,
    optional: bool,
    beside: nn.Module | None,
) -> Patch | None:
    candidates, chosen = preflight(settings), selector(selection(settings))
    others = {id(part) for part in beside.modules()} if beside is not None else set()
    tasks = candidates.by_task if candidates is not None else {}
    asked: dict[str, bool] = {}  # whether the operator chose it, of each site that a candidate is for

    def select(site: Site) -> bool:
        if site.task.name in tasks:
            asked[f"{site.path}:{site.task.name}"] = chosen(site)
        return chosen(site) and id(site.module) not in others

    with context or nullcontext():
        if optional and not plan(model, candidates, select=select).applied:
            return None
        try:
            handle = patch(model, candidates, select=select, verify=settings.verify, lowering=lowering)
        except PatchError as error:
            if not asked or any(asked.values()):
                raise
            given = f"SITES={settings.sites}" if settings.sites else f"SELECT={' '.join(settings.select)}"
            raise ServingError(
                f"FASTKERNELS_{given} chooses none of the {len(asked)} sites of {type(model).__name__} that these "
                f"candidates are for, so no candidate applies. One of them is {min(asked)}."
            ) from error
    try:
        if check is not None:
            check(handle)
    except BaseException:
        handle.unpatch()
        raise
    return handle
