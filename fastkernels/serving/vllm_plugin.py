"""vLLM's entry point. Nothing but the standard library is imported with it: what fails here would only be logged."""


def register() -> None:
    """Called by vLLM in each of its processes, before it builds workers: puts our hooks around these, where an
    operator asked for anything.

    Raises:
        ServingError: a setting is not as it must be, or this vLLM is none that we know. The process then ends.
    """
    from fastkernels.serving.settings import Settings

    if Settings.from_environment().active:
        from fastkernels.serving.vllm_hooks import install

        install()
