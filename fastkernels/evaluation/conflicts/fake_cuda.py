"""Runs a candidate on fake CUDA tensors: no device is needed to see which tensors stay on, or come from, the CPU."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch._C import DispatchKey, DispatchKeySet
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.evaluation.conflicts.fake_streams import Misuse, Streams
from fastkernels.evaluation.conflicts.observe import BUILTIN, frame_of, is_user_file, user_frame
from fastkernels.evaluation.conflicts.report import Evidence
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors

KERNELS = ("CUDA", "CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd")


@dataclass(frozen=True, kw_only=True)
class Move:
    """A CPU tensor among the candidate's: copied up to the device, down from it, or mixed with device tensors."""

    kind: Literal["up", "down", "mixed"]
    where: Evidence


@dataclass
class _Devices(TorchDispatchMode):
    moves: list[Move] = field(default_factory=list)
    locked: list[torch.Tensor] = field(default_factory=list)  # page-locked, of which fakes know nothing
    failed: Exception | None = None  # what a body that was looked into raised first

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tensors((args, kwargs or {}))
        devices = {t.device.type for t in given}
        sized = [t for t in given if t.device.type == "cpu" and t.dim() > 0]
        name = getattr(func, "__name__", str(func))
        if devices == {"cpu", "cuda"} and sized and "copy" not in name:
            text = f"predicted: {name} takes a CPU tensor of shape {tuple(sized[0].shape)} among device tensors"
            self.moves.append(Move(kind="mixed", where=user_frame().model_copy(update={"text": text})))
        self._look_inside(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if (kwargs or {}).get("pin_memory") or func._schema.name.endswith("pin_memory"):
            self.locked += tensors(result)
        locked = {t.untyped_storage()._cdata for t in self.locked}
        up = devices == {"cpu"} and any(t.device.type == "cuda" for t in tensors(result))
        up = up or (devices == {"cpu", "cuda"} and name.startswith("copy_") and args[1].device.type == "cpu")
        if up and not any(t.untyped_storage()._cdata in locked for t in given):
            text = f"predicted: {name} copies a CPU tensor to the device in each call"
            self.moves.append(Move(kind="up", where=user_frame().model_copy(update={"text": text})))
        if devices == {"cuda"} and any(t.device.type == "cpu" for t in tensors(result)):
            text = f"predicted: {name} copies a device tensor to the host"
            self.moves.append(Move(kind="down", where=user_frame().model_copy(update={"text": text})))
        return result

    def _look_inside(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Runs the body of an operator of the candidate's own, if it is Python: it may have tensors of its own."""
        if func.namespace in BUILTIN:
            return
        key = python_kernel(func)
        if key is not None:
            try:
                with self:
                    func.redispatch(DispatchKeySet(key), *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - a body may need real memory: what it did until there counts
                self.failed = self.failed or error


def python_kernel(op: Any) -> DispatchKey | None:
    """The key of the operator's kernel that is a Python function, the one for CUDA first; None for C++."""
    name = f"{op.namespace}/{op._schema.name.split('::')[1]}"
    overloaded = f"{name}.{op._overloadname}"
    for key in KERNELS:
        if {f"{name}/{key}", f"{overloaded}/{key}"} & torch.library._impls:
            return getattr(DispatchKey, "CPU" if key.startswith("Composite") else key)
    return None


def stream_misuses(subject: Subject, call: Call) -> list[Misuse]:
    """What a warm call does with streams that no capture allows; empty too where it cannot run on fake tensors."""
    return faked(subject, call)[1]


def refusal(subject: Subject, call: Call) -> Evidence | None:
    """An error that the candidate itself raises because its stream is captured, and not otherwise."""
    error = _run(subject, call)[2]
    if error is None or _run(subject, call, capturing=False)[2] is not None:
        return None
    last = traceback.extract_tb(error.__traceback__)[-1]
    return frame_of(error) if is_user_file(last.filename) else None


def faked(subject: Subject, call: Call) -> tuple[list[Move], list[Misuse]]:
    """CPU tensors and misused streams of a warm call on fake CUDA tensors; empty too where it cannot run on them."""
    return _run(subject, call)[:2]


def _run(subject: Subject, call: Call, *, capturing: bool = True) -> tuple[list[Move], list[Misuse], Exception | None]:
    """Two calls, the second watched, and what it raised."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    devices, streams = _Devices(), Streams(capturing=capturing)
    try:
        with mode:
            with torch.device("cuda"):
                module = subject.candidate.cls(**call.case.init)
            module = module.to("cuda", call.dtype).eval()

            def arguments() -> Any:
                return pytree.tree_map_only(torch.Tensor, _on_cuda, subject.draw(call))

            with torch.no_grad():
                first, second = arguments(), arguments()
                with streams, devices, _without_device_guards():
                    module(*first)
                    devices.moves.clear()  # what only the first call does is no matter
                    devices.failed = None
                    streams.begin()
                    module(*second)
                if devices.failed is None:
                    streams.end()
    except Exception as error:  # noqa: BLE001 - what cannot be run on fakes is judged by what was seen until then
        devices.failed = error
    return devices.moves, streams.misuses, devices.failed


@contextlib.contextmanager
def _without_device_guards() -> Iterator[None]:
    """``new_tensor`` and indices of lists and tensors set the current device first, which needs a real one: here they
    are spelt so that they do not."""
    new, get = torch.Tensor.new_tensor, torch.Tensor.__getitem__

    def new_tensor(
        self: torch.Tensor, data: Any, *, dtype: Any = None, device: Any = None, **rest: Any
    ) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    def getitem(self: torch.Tensor, index: Any) -> torch.Tensor:
        parts = index if isinstance(index, tuple) else (index,)
        parts = tuple(torch.tensor(p, device=self.device) if isinstance(p, list) else p for p in parts)
        if all(isinstance(p, torch.Tensor) or p == slice(None) for p in parts):
            return torch.ops.aten.index.Tensor(self, [p if isinstance(p, torch.Tensor) else None for p in parts])
        return get(self, index)

    torch.Tensor.new_tensor, torch.Tensor.__getitem__ = new_tensor, getitem  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.new_tensor, torch.Tensor.__getitem__ = new, get  # type: ignore[method-assign]


def _on_cuda(t: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
