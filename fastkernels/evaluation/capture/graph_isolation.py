"""A state of Dynamo for one check: nothing of the process's is reused, nothing of the check's is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType

UNLIMITED = 1 << 20
SETTINGS = {  # each new shape is traced, as a static one, however many there are
    "automatic_dynamic_shapes": False,
    "assume_static_by_default": True,
    "recompile_limit": UNLIMITED,
    "accumulated_recompile_limit": UNLIMITED,
    "suppress_errors": False,
}


@contextmanager
def isolated() -> Iterator[None]:
    """Within it Dynamo specialises every shape, without a limit; the code that it compiled is forgotten at the end.

    What the process had compiled of the same functions is compiled again at its next call.
    """
    import torch._dynamo
    from torch._C._dynamo.eval_frame import reset_code
    from torch._dynamo.convert_frame import register_bytecode_hook

    compiled: dict[int, CodeType] = {}

    def note(code: CodeType, made: CodeType) -> None:
        compiled[id(code)] = code

    hook = register_bytecode_hook(note)
    try:
        with torch._dynamo.config.patch(**SETTINGS):
            yield
    finally:
        hook.remove()
        for code in compiled.values():
            reset_code(code)
