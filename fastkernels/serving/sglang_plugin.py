"""SGLang's entry point."""


def register() -> None:
    """Called by SGLang in each of its processes."""
