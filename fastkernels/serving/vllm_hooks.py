"""Where this library enters a vLLM process: a worker's loading, the engine's first question to its workers, the routes
of its server. The same in vLLM 0.26 and 0.30."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from fastkernels.errors import ServingError
from fastkernels.serving.settings import Settings

LOGGER = logging.getLogger("fastkernels")
MARK = "__fastkernels_hook__"


def install() -> None:
    """Puts the hooks in; a second call does nothing. What they do is asked of the environment when they run.

    Raises:
        ServingError: this vLLM has not what they go around.
    """
    import vllm.plugins
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    hooks: list[tuple[Any, str, Callable[..., Any]]] = [
        (WorkerWrapperBase, "init_device", _init_device),
        (Executor, "get_kv_cache_specs", _get_kv_cache_specs),
    ]
    for owner, name, _ in hooks:  # all or none of them
        if not hasattr(owner, name):
            raise ServingError(
                f"vLLM {vllm.__version__} has no {owner.__name__}.{name}, at which candidates would be put in. Use a "
                "version that fastkernels was run with (0.26, 0.30), or unset FASTKERNELS_CANDIDATES and "
                "FASTKERNELS_WATCH."
            )
    if hasattr(vllm.plugins, "load_endpoint_plugins"):
        hooks.append((vllm.plugins, "load_endpoint_plugins", _load_endpoint_plugins))
    else:
        LOGGER.warning("vLLM %s takes no routes: FASTKERNELS_REPORT_DIR says where reports go.", vllm.__version__)
    for owner, name, hook in hooks:
        _around(owner, name, hook)


def _around(owner: Any, name: str, hook: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        return hook(original, *args, **kwargs)

    setattr(hooked, MARK, True)
    setattr(owner, name, hooked)


def _init_device(original: Callable[..., Any], wrapper: Any, *args: Any, **kwargs: Any) -> Any:
    """Between a worker's construction, in which plugins are loaded, and its loading. Its class is anybody's (CUDA, CPU,
    another platform's): only the instance is touched."""
    result = original(wrapper, *args, **kwargs)
    settings = Settings.from_environment()
    if settings.active:
        from fastkernels.serving.vllm_worker import prepare

        prepare(wrapper.worker, settings)
    return result


def _get_kv_cache_specs(original: Callable[..., Any], executor: Any, *args: Any, **kwargs: Any) -> Any:
    """The engine's first question after its workers have loaded: the moment to ask whether each of them stands."""
    settings = Settings.from_environment()
    if settings.active:
        from fastkernels.serving.vllm_ranks import require_ranks

        require_ranks(executor, settings)
    return original(executor, *args, **kwargs)


def _load_endpoint_plugins(original: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """vLLM loads plugins of routes only where VLLM_PLUGINS names them; ours the operator asked for in another way."""
    plugins: list[Any] = original(*args, **kwargs)
    if Settings.from_environment().active:
        from fastkernels.serving.vllm_route import ReportRoute

        plugins = [*plugins, ReportRoute()]
    return plugins
