"""One SGLang worker: its model is patched when it has been loaded, before anything is captured; its answers to other
processes."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastkernels.errors import ServingError
from fastkernels.evaluation.whole_file import whole_file
from fastkernels.patches.patch import Patch
from fastkernels.serving.capture import require_capturable
from fastkernels.serving.settings import Settings
from fastkernels.serving.sglang_eager import eager_window
from fastkernels.serving.sglang_versions import WAY_OUT, mode_of, ranks_of, version
from fastkernels.serving.standing import Standing
from fastkernels.serving.worker import stand

LOGGER = logging.getLogger("fastkernels")
METHOD = "fastkernels"  # of the scheduler: what SGLang's RPC calls by name
STANDINGS: dict[str, Standing] = {}  # of this process, by model: target, and draft where one speculates


def stand_on(runner: Any, settings: Settings) -> None:
    """Patches the model of a ``ModelRunner`` whose weights are loaded, and remembers what stands.

    Raises:
        ServingError: as ``stand``.
    """
    try:
        ranks, mode = ranks_of(runner), mode_of(runner)
    except ServingError as error:  # a version that nobody knows
        if settings.on_error == "stop":
            raise
        LOGGER.error("SGLang: %s\nThe engine serves unpatched.", error)
        LOGGER.error("fastkernels_patched{engine=sglang} 0")
        return
    name, rank, world_size = "target", ranks.rank, ranks.world_size
    if runner.is_draft_worker:
        name = f"draft{runner.draft_model_idx or ''}"
        if "target" in STANDINGS:  # a draft's runner is told ranks of its own, which other processes may have too
            told = STANDINGS["target"].report()
            rank, world_size = told.rank, told.world_size
    if ranks.dp_rank and settings.report_dir is not None:
        settings = replace(settings, report_dir=settings.report_dir / f"replica{ranks.dp_rank}")

    def check(handle: Patch) -> None:
        if mode.captures:
            require_capturable(handle, "--disable-cuda-graph")

    STANDINGS[name] = stand(
        runner.model,
        settings,
        engine="sglang",
        version=version(),
        rank=rank,
        world_size=world_size,
        compilation=mode.words,
        # One operator: its name shows in graphs, and its work on the host has been looked at.
        lowering="opaque" if mode.compiles or mode.captures else "auto",
        name=name,
        context=_ready(runner),
        check=check,
        optional=runner.is_draft_worker,
    )
    STANDINGS[name].eager_window = functools.partial(eager_window, runner)


@contextmanager
def _ready(runner: Any) -> Iterator[None]:
    """What modules need around a call outside a step, once the weights are there."""
    from fastkernels.patches.sglang.context import call_context

    if getattr(runner, "startup_weight_load", None) is not None:
        raise ServingError(
            "SGLang is asked to load weights while it captures graphs (startup_weight_load_mode=overlap), so no "
            "candidate can be tried before. Leave that option out."
        )
    if getattr(runner, "token_to_kv_pool", None) is not None:
        raise ServingError(
            f"SGLang {version()} allocated its cache before this, so a patch would come too late. {WAY_OUT}"
        )
    if "_megakernel" in vars(runner.model):
        raise ServingError(
            "SGLang's megakernel (--enable-nvidia-megakernel) computes whole steps in the model's stead and calls "
            "none of its modules. Leave that option out."
        )
    with call_context(runner):
        yield


def require_ranks(scheduler: Any, settings: Settings) -> None:
    """Asks all ranks of tensor parallelism, when each has made its scheduler, whether they stand alike.

    Raises:
        ServingError: no model of this process was passed to us, or a rank holds other candidates than rank 0, and
            ``on_error`` is ``stop``.
    """
    own = _content()
    held: list[Any] = [None] * torch.distributed.get_world_size(group=scheduler.tp_cpu_group)
    torch.distributed.all_gather_object(held, own, group=scheduler.tp_cpu_group)
    wrong = ""
    if None in held:
        wrong = f"rank {held.index(None)} made a scheduler, and its model was not passed to fastkernels. {WAY_OUT}"
    elif own != held[0]:
        wrong = f"rank {STANDINGS['target'].report().rank} holds {own}, and rank 0 {held[0]}. "
        wrong += "Let no file change while the engine starts, and give each node the same folder."
    if wrong and settings.on_error == "stop":
        raise ServingError(
            f"SGLang: {wrong}\nThe engine does not start. FASTKERNELS_ON_ERROR=serve would start it as its workers are."
        )
    if wrong:
        LOGGER.error("SGLang: %s", wrong)
        LOGGER.error("fastkernels_patched{engine=sglang,rank=%d} 0", torch.distributed.get_rank())


def _content() -> tuple[str, list[tuple[str, str]]] | None:
    """State of this process's model, and the candidates, by content, that were loaded for it."""
    if "target" not in STANDINGS:
        return None
    report = STANDINGS["target"].report()
    return report.state, [(c.task, c.digest) for c in report.patch.candidates] if report.patch is not None else []


def answer(scheduler: Any, verb: str, folder: str, arguments: tuple[str, ...] = ()) -> None:
    """Called by SGLang's RPC in each scheduler, which returns nothing to its caller: writes ``folder/<rank>.json``,
    ``{"answers": [...]}`` or ``{"error": ...}``. Reports are those of each model here; all else is the target's."""
    try:
        asked = list(STANDINGS.values()) if verb == "fastkernels_report" else [STANDINGS["target"]]
        told: dict[str, Any] = {"answers": [standing.verbs()[verb](*arguments) for standing in asked]}
    except Exception as error:  # noqa: BLE001 - of any kind: it is the caller's to raise
        told = {"error": f"{type(error).__name__}: {error}"}
    with whole_file(Path(folder) / f"{ranks_of(scheduler).rank}.json") as path:
        path.write_text(json.dumps(told))
