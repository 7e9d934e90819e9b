"""The hooks with which transformers records hidden states and attentions of inner modules.

A model puts them on its layers at the first call that asks for either, and leaves them there for good."""

from __future__ import annotations

import sys
from typing import Any

MODULE = "transformers.utils.output_capturing"


def is_idle(hook: Any) -> bool:
    """True for a recording hook that would record nothing now: no call that is under way asks for its output."""
    if getattr(hook, "__module__", None) != MODULE or getattr(hook, "__closure__", None) is None:
        return False
    cells = dict(zip(hook.__code__.co_freevars, hook.__closure__, strict=True))
    collector = getattr(sys.modules[MODULE], "_active_collector", None)
    if collector is None or "key" not in cells:
        return False
    collected = collector.get()
    return collected is None or cells["key"].cell_contents not in collected
