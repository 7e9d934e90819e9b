"""Does a call do work on the host that a CUDA graph would leave out of its replays? Seen on one warm call.

Reading a value, copying to the host, waiting for the device, printing and logging: in a captured graph each fails, or
happens once, with the first call's values."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# Methods of Tensor that bring a value, or memory, to Python.
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__complex__")
# Operators whose result only the data knows: C++ that reads a value ends here.
WAITING_OPERATORS = frozenset(
    {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2"}
    | {"aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::is_nonzero"}
)
WAITS = ((torch.cuda, "synchronize"), (torch.cuda.Stream, "synchronize"), (torch.cuda.Event, "synchronize"))


def host_work(forward: Callable[..., Any], fresh: Callable[[], Any]) -> str | None:
    """The first such work of a warm call of ``forward`` on ``fresh()``, with its line; None for none.

    >>> host_work(lambda x: x * x.max().item(), lambda: [torch.ones(2)])
    'Tensor.item at <doctest fastkernels.runtime.host_work.host_work[0]>:1'
    >>> host_work(torch.sin, lambda: [torch.ones(2)]) is None
    True
    """
    found: list[str] = []
    with torch.no_grad():
        forward(*fresh())
        arguments = fresh()
        with _methods(found), _output(found), _Operators(found):
            forward(*arguments)
    return found[0] if found else None


class _Operators(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in WAITING_OPERATORS or (_on((args, kwargs), "cuda") and _on(result, "cpu")):
            self.found.append(f"{name}{_line()}")
        return result


def _on(value: Any, device: str) -> bool:
    return any(isinstance(t, torch.Tensor) and t.device.type == device for t in pytree.tree_leaves(value))


@contextlib.contextmanager
def _methods(found: list[str]) -> Iterator[None]:
    """Python's ways to a value, which on a CPU tensor leave no trace in the dispatcher."""
    saved: list[tuple[Any, str, Any]] = []

    def watch(owner: Any, name: str, label: str, when: Callable[..., bool]) -> None:
        original = getattr(owner, name, None)
        if original is None:
            return

        def watched(*args: Any, **kwargs: Any) -> Any:
            line = _line()
            if line and when(*args, **kwargs):
                found.append(f"{label}{line}")
            return original(*args, **kwargs)

        saved.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, watched)

    for name in READS:
        watch(torch.Tensor, name, f"Tensor.{name}", lambda *_, **__: True)
    watch(torch.Tensor, "to", "Tensor.to the host", _to_host)
    watch(torch.Tensor, "data_ptr", "Tensor.data_ptr of host memory", lambda t: t.device.type == "cpu")
    for owner, name in WAITS:
        watch(owner, name, f"torch.cuda {name}", lambda *_, **__: True)
    try:
        yield
    finally:
        for owner, name, original in reversed(saved):
            if original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)


def _to_host(_: Any, *args: Any, **kwargs: Any) -> bool:
    return any(isinstance(a, str) and a.startswith("cpu") for a in (*args[:1], kwargs.get("device")))


@contextlib.contextmanager
def _output(found: list[str]) -> Iterator[None]:
    """Writing to a standard stream, and log records."""

    class Told:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def write(self, text: str) -> int:
            found.append(f"output{_line()}")
            return self.stream.write(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    handle = logging.Logger.handle

    def handled(logger: logging.Logger, record: logging.LogRecord) -> None:
        found.append(f"logging{_line()}")
        handle(logger, record)

    logging.Logger.handle = handled  # type: ignore[method-assign] # put back below
    try:
        with contextlib.redirect_stdout(Told(sys.stdout)), contextlib.redirect_stderr(Told(sys.stderr)):
            yield
    finally:
        logging.Logger.handle = handle  # type: ignore[method-assign]


def _line() -> str:
    """The innermost frame that is neither torch's, the standard library's nor ours; empty where there is none."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name not in OURS and not name.startswith(FOREIGN):
            return f" at {name.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


OURS = {__file__, contextlib.__file__}
FOREIGN = (*(inspect.getfile(m).rpartition("/")[0] + "/" for m in (torch, logging)), "<frozen")
