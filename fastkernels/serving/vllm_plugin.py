"""vLLM's entry point. Nothing but the standard library is imported with it: what fails here would only be logged."""

from __future__ import annotations

import logging
import os


def register() -> None:
    """Called by vLLM in each of its processes, before it builds workers: puts our hooks around these, where an
    operator asked for anything.

    Raises:
        ServingError: a setting is not as it must be, or this vLLM is none that we know, unless ``FASTKERNELS_ON_ERROR``
            is ``serve``. The process then ends.
    """
    try:
        from fastkernels.serving.settings import Settings

        if Settings.from_environment().active:
            from fastkernels.serving.vllm_hooks import install

            install()
    except Exception as error:
        if os.environ.get("FASTKERNELS_ON_ERROR") != "serve":
            raise
        logger = logging.getLogger("fastkernels")
        told = f"fastkernels in vLLM, process {os.getpid()}: {type(error).__name__}: {error}"
        logger.error("%s\nThe engine serves unpatched.", told)
        logger.error("fastkernels_patched{engine=vllm} 0")
