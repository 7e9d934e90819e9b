"""One SGLang worker: its model is patched when it has been loaded, before anything is captured; its answers to other
processes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastkernels.errors import ServingError
from fastkernels.evaluation.whole_file import whole_file
from fastkernels.patches.patch import Patch
from fastkernels.serving.capture import require_capturable
from fastkernels.serving.settings import Settings
from fastkernels.serving.standing import Standing
from fastkernels.serving.worker import stand

LOGGER = logging.getLogger("fastkernels")
METHOD = "fastkernels"  # of the scheduler: what SGLang's RPC calls by name
STANDINGS: dict[str, Standing] = {}  # of this process, by model: target, and draft where one speculates


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How SGLang will run the model: in ``words``, whether Dynamo traces it, whether CUDA graphs replay it."""

    words: str
    compiles: bool
    captures: bool


def stand_on(runner: Any, settings: Settings) -> None:
    """Patches the model of a ``ModelRunner`` whose weights are loaded, and remembers what stands.

    Raises:
        ServingError: as ``stand``.
    """
    import sglang

    if not hasattr(runner, "ps"):
        raise ServingError(
            f"SGLang {sglang.__version__} keeps the ranks of a worker where fastkernels does not look. Use a version "
            "that it was run with (0.5.17, 0.5.20), or unset FASTKERNELS_CANDIDATES and FASTKERNELS_WATCH."
        )
    parallel, mode = runner.ps, mode_of(runner)
    name = "target"
    if runner.is_draft_worker:
        name = f"draft{runner.draft_model_idx or ''}"
    if parallel.dp_rank and settings.report_dir is not None:
        settings = replace(settings, report_dir=settings.report_dir / f"replica{parallel.dp_rank}")

    def check(handle: Patch) -> None:
        if mode.captures:
            require_capturable(handle, "--disable-cuda-graph")

    STANDINGS[name] = stand(
        runner.model,
        settings,
        engine="sglang",
        version=sglang.__version__,
        rank=rank_of(parallel),
        world_size=parallel.tp_size * parallel.pp_size,
        compilation=mode.words,
        # One operator: its name shows in graphs, and its work on the host has been looked at.
        lowering="opaque" if mode.compiles or mode.captures else "auto",
        name=name,
        context=_ready(runner),
        check=check,
        optional=runner.is_draft_worker,
    )


def rank_of(parallel: Any) -> int:
    """The rank of a worker among those of its replica of the model."""
    return parallel.pp_rank * parallel.tp_size + parallel.tp_rank


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
            "this SGLang allocates and captures while it initialises a runner, so a patch would come too late. Use a "
            "version that fastkernels was run with (0.5.17 to 0.5.20)."
        )
    with call_context(runner):
        yield


def mode_of(runner: Any) -> Mode:
    """How this process's published configuration runs the model."""
    from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, check_cuda_graph_backend
    from sglang.srt.runtime_context import get_flags

    compiled = bool(get_flags().capture.enable_torch_compile)
    graphs = {
        phase: backend
        for phase in (Phase.PREFILL, Phase.DECODE)
        for backend in Backend.ALL
        if backend != Backend.DISABLED and check_cuda_graph_backend(phase, backend) and runner.device != "cpu"
    }
    words = [f"{phase} {backend} CUDA graphs" for phase, backend in graphs.items()]
    words += ["torch.compile"] if compiled else []
    return Mode(
        words=", ".join(words) or "eager",
        compiles=compiled or Backend.TC_PIECEWISE in graphs.values(),
        captures=bool(graphs),
    )


def require_ranks(scheduler: Any, settings: Settings) -> None:
    """Asks all ranks of tensor parallelism, when each has made its scheduler, whether they stand alike.

    Raises:
        ServingError: no model of this process was passed to us, or a rank holds other candidates than rank 0, and
            ``on_error`` is ``stop``.
    """
    own = _content()
    held: list[Any] = [own]
    if scheduler.ps.tp_size > 1:
        held = [None] * scheduler.ps.tp_size
        torch.distributed.all_gather_object(held, own, group=scheduler.tp_cpu_group)
    wrong = ""
    if None in held:
        wrong = f"rank {held.index(None)} made a scheduler, and its model was not passed to fastkernels"
    elif own != held[0]:
        wrong = f"rank {rank_of(scheduler.ps)} holds {own}, and rank 0 {held[0]}. Let no file change while it starts"
    if wrong and settings.on_error == "stop":
        raise ServingError(f"SGLang: {wrong}. The engine does not start.")
    if wrong:
        LOGGER.error("SGLang: %s", wrong)
        LOGGER.error("fastkernels_patched{engine=sglang,rank=%d} 0", rank_of(scheduler.ps))


def _content() -> tuple[str, list[tuple[str, str]]] | None:
    """State of this process's model, and the candidates, by content, that were loaded for it."""
    if "target" not in STANDINGS:
        return None
    report = STANDINGS["target"].report()
    return report.state, [(c.task, c.digest) for c in report.patch.candidates] if report.patch is not None else []


def ranks_of(server_args: Any) -> int:
    """Workers that SGLang's RPC reaches.

    Raises:
        ServingError: replicas, of which it reaches one.
    """
    if (server_args.dp_size or 1) > 1:
        raise ServingError(
            f"dp_size={server_args.dp_size}: SGLang's RPC reaches one of its schedulers only. Read the reports in "
            "FASTKERNELS_REPORT_DIR, which each worker writes when it starts."
        )
    return (server_args.tp_size or 1) * (server_args.pp_size or 1)


def answer(scheduler: Any, verb: str, folder: str) -> None:
    """Called by SGLang's RPC in each scheduler, which returns nothing to its caller: writes ``folder/<rank>.json``,
    ``{"answers": [...]}`` or ``{"error": ...}``. Reports are those of each model here; all else is the target's."""
    try:
        asked = list(STANDINGS.values()) if verb == "fastkernels_report" else [STANDINGS["target"]]
        told: dict[str, Any] = {"answers": [standing.verbs()[verb]() for standing in asked]}
    except Exception as error:  # noqa: BLE001 - of any kind: it is the caller's to raise
        told = {"error": f"{type(error).__name__}: {error}"}
    with whole_file(Path(folder) / f"{rank_of(scheduler.ps)}.json") as path:
        path.write_text(json.dumps(told))
