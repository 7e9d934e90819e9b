"""Does a candidate's Triton run in the interpreter? Such kernels run on the CPU, but no compiler can take them."""

from __future__ import annotations

import sys
from typing import Any


def interpreted(cls: type) -> bool:
    """Whether the module that defines ``cls`` holds a Triton function in the interpreter's form."""
    try:
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError:
        return False
    values: dict[str, Any] = vars(sys.modules.get(cls.__module__, sys))
    return any(isinstance(getattr(v, "fn", v), InterpretedFunction) or isinstance(v, InterpretedFunction)
               for v in values.values())  # fmt: skip
