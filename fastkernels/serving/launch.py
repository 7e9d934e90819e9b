"""How a serving engine's own server is started so that our plugin is in each of its processes."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

from fastkernels.errors import ServingError
from fastkernels.serving.preflight import preflight
from fastkernels.serving.settings import OnError, Settings

EngineName = Literal["vllm", "sglang"]
PLUGIN = "fastkernels"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What one engine is started by."""

    group: str  # of entry points that it calls in each of its processes
    allowed: str  # variable that names the only plugins to load, separated by commas
    names: Callable[[str], list[str] | None]  # how the engine reads that variable; None for no restriction
    command: tuple[str, ...]  # arguments of Python before the model


ENGINES: Mapping[str, Known] = {
    "vllm": Known(
        group="vllm.general_plugins",
        allowed="VLLM_PLUGINS",
        names=lambda given: given.split(","),
        command=("-m", "vllm.entrypoints.cli.main", "serve"),
    ),
    "sglang": Known(
        group="sglang.srt.plugins",
        allowed="SGLANG_PLUGINS",
        names=lambda given: [name.strip() for name in given.split(",")] if given else None,
        command=("-m", "sglang.launch_server", "--model-path"),
    ),
}


def command_of(engine: str, model: str, arguments: Sequence[str] = ()) -> list[str]:
    """The command of the engine's server, by the Python that runs now; the folder that it runs in is not on its path
    (-P): what lies there could hide the entry point that was found here.

    >>> command_of("sglang", "model", ["--port", "30000"])[1:]
    ['-P', '-m', 'sglang.launch_server', '--model-path', 'model', '--port', '30000']
    """
    return [sys.executable, "-P", *ENGINES[engine].command, model, *arguments]


def environment_of(
    engine: str,
    *,
    candidates: str,
    select: tuple[str, ...] = (),
    on_error: OnError = "stop",
    lock: Path | None = None,
    report_dir: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """Variables to add to ``environment`` for a server with these candidates, after all checks that need no server.

    Raises:
        ServingError: the engine, its plugin, the candidates, or the lock are not there or not as they must be. With
            ``on_error="serve"`` the candidates are not checked.
    """
    known = ENGINES[engine]
    if importlib.util.find_spec(engine) is None:
        raise ServingError(f"{engine} is not installed for {sys.executable}. Install it there, beside fastkernels.")
    if not any(point.name == PLUGIN for point in entry_points(group=known.group)):
        raise ServingError(
            f"no entry point {PLUGIN} in {known.group}: {engine} would not load fastkernels. Reinstall fastkernels."
        )
    allowed = environment.get(known.allowed)
    names = None if allowed is None else known.names(allowed)
    if names is not None and PLUGIN not in names:
        raise ServingError(
            f"{known.allowed}={allowed!r} leaves out {PLUGIN}: {engine} would serve without it. Add it, or unset "
            f"{known.allowed}."
        )
    named = {k: v for k, v in environment.items() if k != "FASTKERNELS_CANDIDATES"}
    settings = replace(
        Settings.from_environment(named),
        candidates=_absolute(candidates),
        on_error=on_error,
        **{k: v for k, v in {"select": select, "lock": lock, "report_dir": report_dir}.items() if v},
    )
    if on_error == "stop":
        preflight(settings)
    return settings.environment()


def _absolute(candidates: str) -> str:
    """A folder's path as it is for processes that run elsewhere; words stay."""
    folder = Path(candidates).expanduser()
    return str(folder.resolve()) if folder.is_dir() else candidates
