"""vLLM's entry point."""


def register() -> None:
    """Called by vLLM in each of its processes."""
