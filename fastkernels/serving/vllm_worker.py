"""One vLLM worker: its model is patched when it has been loaded, before anything is profiled, compiled or captured."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from fastkernels.errors import ServingError
from fastkernels.patches.patch import Patch
from fastkernels.serving.capture import require_capturable
from fastkernels.serving.preflight import preflight
from fastkernels.serving.settings import Settings
from fastkernels.serving.standing import Standing
from fastkernels.serving.vllm_cache_key import enter_cache_key
from fastkernels.serving.vllm_eager import eager_window
from fastkernels.serving.worker import stand

LOGGER = logging.getLogger("fastkernels")


def prepare(worker: Any, settings: Settings) -> None:
    """Checks what can be checked before minutes of loading, and stands on the model at the end of ``load_model``. A
    second call does nothing.

    Raises:
        ServingError: the candidates cannot be loaded, and ``on_error`` is ``stop``.
    """
    if "load_model" in vars(worker):
        return
    if settings.on_error == "stop":
        preflight(settings)
    worker.load_model = functools.partial(_load_and_stand, worker, settings, worker.load_model)


def _load_and_stand(worker: Any, settings: Settings, load_model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    if settings.candidates is not None:
        _keep_weights(settings)
    load_model(*args, **kwargs)
    stand_in(worker, settings)


def _keep_weights(settings: Settings) -> None:
    from fastkernels.patches.vllm.cpu_weights import keep_weights

    try:
        keep_weights()
    except (ImportError, AttributeError) as error:  # this vLLM packs weights in another way
        if settings.on_error == "stop":
            raise ServingError(
                f"vLLM's weights cannot be kept as candidates need them ({error}). The engine does not start. "
                "FASTKERNELS_ON_ERROR=serve would start it without."
            ) from error
        LOGGER.error("vLLM's weights cannot be kept as candidates need them: %s", error)


def stand_in(worker: Any, settings: Settings) -> None:
    """Patches the model of a loaded worker, and the one that drafts for it; gives the worker our verbs.

    Raises:
        ServingError: as ``stand``.
    """
    models = {"target": worker.get_model()}
    draft = getattr(worker, "get_draft_model", lambda: None)()
    if isinstance(draft, nn.Module):
        models["draft"] = draft
    before = _allocated()
    standing = {name: _stand_on(model, name, worker, settings) for name, model in models.items()}
    if hasattr(worker.model_runner, "model_memory_usage"):  # what vLLM takes for the weights when it plans its cache
        worker.model_runner.model_memory_usage += max(_allocated() - before, 0)
    enter_cache_key(_configs(worker, models.values()), [s.report().digest for s in standing.values()])
    standing["target"].call_context = functools.partial(_call_context, worker.vllm_config)
    standing["target"].eager_window = functools.partial(eager_window, worker)
    for verb, function in standing["target"].verbs().items():
        setattr(worker, verb, function)
    worker.fastkernels_reports = functools.partial(_reports, list(standing.values()))


def _stand_on(model: nn.Module, name: str, worker: Any, settings: Settings) -> Standing:
    import vllm

    config = worker.vllm_config
    mode, graphs = config.compilation_config.mode, config.compilation_config.cudagraph_mode
    compiled, captured = bool(mode), graphs is not None and graphs.name != "NONE"
    ranks = config.parallel_config
    if ranks.data_parallel_size > 1 and settings.report_dir is not None:
        settings = replace(settings, report_dir=settings.report_dir / f"replica{ranks.data_parallel_rank}")

    def check(handle: Patch) -> None:
        _require_reachable(handle)
        if captured:
            require_capturable(handle, "enforce_eager=True (--enforce-eager)")

    return stand(
        model,
        settings,
        engine="vllm",
        version=vllm.__version__,
        rank=worker.rank,
        world_size=ranks.world_size,
        compilation=(
            f"compilation {getattr(mode, 'name', mode)}, CUDA graphs {getattr(graphs, 'name', graphs)}, "
            f"enforce_eager={config.model_config.enforce_eager}"
        ),
        lowering=lowering_for(compiled=compiled, captured=captured),
        name=name,
        context=_call_context(config),
        check=check,
        optional=name == "draft",  # it proposes tokens, and the target decides
        beside=worker.get_model() if name == "draft" else None,
    )


def lowering_for(*, compiled: bool, captured: bool) -> Literal["auto", "opaque", "transparent"]:
    """One operator wherever the engine compiles or captures: its work on the host has been looked at. Where Inductor
    compiles it launches a candidate's Triton kernels itself: prefill is not captured, and each call of an operator
    there costs the host 10 to 40 us."""
    if compiled:
        return "transparent"
    return "opaque" if captured else "auto"


@contextmanager
def _call_context(config: Any) -> Iterator[None]:
    from fastkernels.patches.vllm.context import call_context  # within stand(): what fails here is its business

    with call_context(config):
        yield


def _require_reachable(handle: Patch) -> None:
    """vLLM compiles the class's own forward of some modules, whatever stands in the instance."""
    from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper

    for path, dispatcher in handle.dispatchers.items():
        module = dispatcher.module
        if isinstance(module, TorchCompileWithNoGuardsWrapper) and not getattr(module, "do_not_compile", False):
            raise ServingError(
                f"{path or '(model)'} ({type(module).__name__}): vLLM compiles this module's own forward, and would "
                f"not call the candidate for {dispatcher.proposal.task}. Leave it out (FASTKERNELS_SELECT), or run "
                "with enforce_eager=True."
            )


def _configs(worker: Any, models: Any) -> list[Any]:
    """Every VllmConfig that a compilation in this worker may ask for its hash; parts of a model have their own."""
    found = [worker.vllm_config, getattr(worker.model_runner, "vllm_config", None)]
    for model in models:
        found += [getattr(part, "vllm_config", None) for part in model.modules()]
    return list({id(c): c for c in found if c is not None}.values())


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() and torch.cuda.is_initialized() else 0


def _reports(standing: list[Standing]) -> str:
    """``[WorkerReport, ...]`` as JSON: of the model, and of the one that drafts for it."""
    return json.dumps([json.loads(s.report_json()) for s in standing])
