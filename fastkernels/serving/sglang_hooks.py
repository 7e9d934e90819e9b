"""Where this library enters an SGLang process: a runner's loading, a scheduler's making and its RPC, the server's app.

By our own means: SGLang's hook registry logs a hook that does not take, and starts without it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from fastkernels.errors import ServingError
from fastkernels.serving import sglang_worker
from fastkernels.serving.preflight import preflight
from fastkernels.serving.settings import Settings
from fastkernels.serving.sglang_http import add_report
from fastkernels.serving.sglang_versions import WAY_OUT, seam_of, version

HTTP_SERVER = "sglang.srt.entrypoints.http_server"


def install(settings: Settings) -> None:
    """Puts the hooks in; a second call does nothing.

    Raises:
        ServingError: this SGLang has not what they go around.
    """
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.model_executor.model_runner import ModelRunner

    if hasattr(Scheduler, sglang_worker.METHOD):
        return

    seam = seam_of(ModelRunner)

    def load(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
        if seam.side == "before":
            sglang_worker.stand_on(runner, settings)
        result = original(runner, *args, **kwargs)
        if seam.side == "after":
            sglang_worker.stand_on(runner, settings)
        return result

    def make_scheduler(original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> None:
        original(scheduler, *args, **kwargs)
        sglang_worker.require_ranks(scheduler, settings)

    def launch(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if settings.on_error == "stop":
            preflight(settings)  # an exception here, where there is a caller; a worker's kills the process
        result = original(*args, **kwargs)
        http = sys.modules.get(HTTP_SERVER)  # where nobody imported it, nobody serves it
        ports = [part for part in result if hasattr(part, "rpc_ipc_name")]
        if http is not None and ports:
            add_report(http.app, ports[0].rpc_ipc_name, kwargs["server_args"])
        return result

    hooks: list[tuple[type, str, Callable[..., Any]]] = [
        (ModelRunner, seam.method, load),
        (Scheduler, "__init__", make_scheduler),
        (Engine, "_launch_subprocesses", launch),
    ]
    for owner, name, _ in hooks:
        if not hasattr(owner, name):
            raise ServingError(
                f"SGLang {version()} has no {owner.__name__}.{name}, at which fastkernels enters. {WAY_OUT}"
            )
    for owner, name, hook in hooks:
        _around(owner, name, hook)
    setattr(Scheduler, sglang_worker.METHOD, sglang_worker.answer)


def _around(owner: type, name: str, hook: Callable[..., Any]) -> None:
    held = inspect.getattr_static(owner, name)
    original = held.__func__ if isinstance(held, classmethod) else held

    @functools.wraps(original)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        return hook(original, *args, **kwargs)

    setattr(owner, name, classmethod(hooked) if isinstance(held, classmethod) else hooked)
