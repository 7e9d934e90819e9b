"""Runs a candidate on fake CUDA tensors: no device is needed to see which tensors stay on, or come from, the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.evaluation.conflicts.observe import user_frame
from fastkernels.evaluation.conflicts.report import Evidence
from fastkernels.evaluation.conflicts.subject import Call, Subject, tensors


@dataclass(frozen=True, kw_only=True)
class Move:
    """A CPU tensor among the candidate's: copied up to the device, down from it, or mixed with device tensors."""

    kind: Literal["up", "down", "mixed"]
    where: Evidence


@dataclass
class _Devices(TorchDispatchMode):
    moves: list[Move] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tensors((args, kwargs or {}))
        devices = {t.device.type for t in given}
        sized = [t for t in given if t.device.type == "cpu" and t.dim() > 0]
        name = getattr(func, "__name__", str(func))
        if devices == {"cpu", "cuda"} and sized and "copy" not in name:
            text = f"predicted: {name} takes a CPU tensor of shape {tuple(sized[0].shape)} among device tensors"
            self.moves.append(Move(kind="mixed", where=user_frame().model_copy(update={"text": text})))
        result = func(*args, **(kwargs or {}))
        up = devices == {"cpu"} and any(t.device.type == "cuda" for t in tensors(result))
        if up or (devices == {"cpu", "cuda"} and name.startswith("copy_") and args[1].device.type == "cpu"):
            text = f"predicted: {name} copies a CPU tensor to the device in each call"
            self.moves.append(Move(kind="up", where=user_frame().model_copy(update={"text": text})))
        if devices == {"cuda"} and any(t.device.type == "cpu" for t in tensors(result)):
            text = f"predicted: {name} copies a device tensor to the host"
            self.moves.append(Move(kind="down", where=user_frame().model_copy(update={"text": text})))
        return result


def device_moves(subject: Subject, call: Call) -> list[Move]:
    """CPU tensors in a warm call; empty too where the candidate cannot run on fake tensors."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    devices = _Devices()
    try:
        with mode:
            with torch.device("cuda"):
                module = subject.candidate.cls(**call.case.init)
            module = module.to("cuda", call.dtype).eval()

            def arguments() -> Any:
                return pytree.tree_map_only(torch.Tensor, _on_cuda, subject.draw(call))

            with torch.no_grad():
                first, second = arguments(), arguments()
                with devices:
                    module(*first)
                    devices.moves.clear()  # what only the first call does is no matter
                    module(*second)
    except Exception:  # noqa: BLE001 - what cannot be run on fakes is judged by what was seen until then
        return devices.moves
    return devices.moves


def _on_cuda(t: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
