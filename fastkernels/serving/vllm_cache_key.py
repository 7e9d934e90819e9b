"""vLLM's compile caches are keyed by its configuration, which knows nothing of patches: this puts their digest in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KEY = "fastkernels"


def enter_cache_key(configs: Iterable[Any], digests: Iterable[str]) -> None:
    """Makes ``compute_hash()`` of each configuration depend on what was put into the models; nothing, if nothing was.

    Args:
        configs: every VllmConfig that a compilation in this process may ask.
        digests: of each model's patch; empty where it has none.
    """
    held = [digest for digest in digests if digest]
    if not held:
        return
    digest = hashlib.sha256("".join(held).encode()).hexdigest()
    for config in configs:
        given = config.additional_config
        config.additional_config = {**given, KEY: digest} if isinstance(given, dict) else Keyed(given, digest)
        named = config.compilation_config.cache_dir
        if named:  # by the operator: vLLM then asks for no hash, and takes whatever the folder holds
            config.compilation_config.cache_dir = str(Path(named) / f"{KEY}-{digest[:16]}")


class Keyed:
    """An operator's own object of additional configuration, with our digest in its hash."""

    def __init__(self, given: Any, digest: str) -> None:
        self._given, self._digest = given, digest

    def compute_hash(self) -> str:
        return hashlib.sha256(f"{self._given.compute_hash()}{self._digest}".encode()).hexdigest()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for before there is anything to ask, by pickle and copy
            raise AttributeError(name)
        return getattr(self._given, name)
