"""The vLLM host: adapters that read its modules as tasks.

Lower levels come first: an adapter may ask which sites stand inside its module."""

ADAPTERS = ()
