"""While anything is captured compiled calls run eagerly; afterwards the compiler's stance is what it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class _UnderWay:
    """Captures of this process, and the stance that the first of them set."""

    captures: int = 0
    stance: Any = None


_UNDER_WAY = _UnderWay()


@contextmanager
def eagerly() -> Iterator[None]:
    """``force_eager``, from the first capture that begins to the last that ends, in whatever order they end.

    >>> first, second = eagerly(), eagerly()
    >>> for capture in (first, second):
    ...     capture.__enter__()
    >>> _ = first.__exit__(None, None, None), second.__exit__(None, None, None)
    >>> _UNDER_WAY
    _UnderWay(captures=0, stance=None)
    """
    if not _UNDER_WAY.captures and "torch._dynamo" in sys.modules:  # else nothing is compiled
        _UNDER_WAY.stance = torch.compiler.set_stance("force_eager")
    _UNDER_WAY.captures += 1
    try:
        yield
    finally:
        _UNDER_WAY.captures -= 1
        if not _UNDER_WAY.captures and _UNDER_WAY.stance is not None:
            _UNDER_WAY.stance.__exit__(None, None, None)
            _UNDER_WAY.stance = None
