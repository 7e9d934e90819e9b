"""SGLang's entry point: called in each process of an engine. Nothing but the standard library is imported with it: what
SGLang cannot import it logs, and it starts without."""

from __future__ import annotations

import logging
import os


def register() -> None:
    """Called by SGLang in each of its processes, before it parses arguments or loads a model: puts our hooks around
    these, where an operator asked for anything. A second call does nothing.

    Raises:
        SystemExit: a setting is not as it must be, or this SGLang is none that we know, unless ``FASTKERNELS_ON_ERROR``
            is ``serve``. SGLang logs any ``Exception`` of a plugin and starts unpatched.
    """
    try:
        from fastkernels.serving.settings import Settings

        settings = Settings.from_environment()
        if settings.active:
            from fastkernels.serving.sglang_hooks import install

            install(settings)
    except Exception as error:
        told = f"fastkernels in SGLang, process {os.getpid()}: {type(error).__name__}: {error}"
        if os.environ.get("FASTKERNELS_ON_ERROR") == "serve":
            logger = logging.getLogger("fastkernels")
            logger.error("%s\nThe engine serves unpatched.", told)
            logger.error("fastkernels_patched{engine=sglang} 0")
            return
        raise SystemExit(
            f"{told}\nThe engine does not start. FASTKERNELS_ON_ERROR=serve would start it unpatched."
        ) from error
