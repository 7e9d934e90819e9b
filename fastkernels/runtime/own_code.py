"""A function behind a code object that no other has: Dynamo keeps what it compiled, and counts recompiles, by code."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any


def with_own_code(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, of which Dynamo knows nothing yet, whatever it has compiled of it elsewhere.

    >>> one, other = with_own_code(len), with_own_code(len)
    >>> one("ab"), one.__code__ is other.__code__
    (2, False)
    """

    def traced(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return FunctionType(traced.__code__.replace(), globals(), "traced", None, traced.__closure__)
