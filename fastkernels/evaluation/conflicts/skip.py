"""How a stage says that it cannot run, and why."""

from __future__ import annotations

import importlib.util
from typing import NoReturn

import torch

from fastkernels.evaluation.conflicts.subject import Subject


class Skip(Exception):
    """The stage was not run; the message is the reason."""


def need_engine(name: str) -> None:
    """Raises Skip where the serving engine ``name`` is not installed."""
    if importlib.util.find_spec(name) is None:
        raise Skip(f"{name} is not installed")


def need_cuda(subject: Subject, *, predicted: str = "") -> None:
    """Raises Skip where there is no CUDA device. ``predicted`` names what the CPU trace was searched for, in vain."""
    if subject.device.type != "cuda":
        _no_cuda(predicted)


def _no_cuda(predicted: str) -> NoReturn:
    why = "the candidate does not run on CUDA" if torch.cuda.is_available() else "no CUDA device"
    raise Skip(f"{why}; the CPU trace shows no {predicted}" if predicted else why)


# What torch, Triton and the CUDA loaders say on a machine without a device, a driver or a toolkit.
NO_CUDA = (
    "not compiled with cuda enabled",
    "no cuda gpus are available",
    "no nvidia driver",
    "active drivers",
    "no cuda-capable device",
    "cuda_home environment variable is not set",
    "libcuda.so",
    "libcudart",
    "not linked with support for cuda",
    "cuda is not available",
    "requires cuda support",
    "instantiate dummy base class",
)


def wants_cuda(error: BaseException) -> bool:
    """Whether an error, or one behind it, only says that this machine has no CUDA device."""
    link: BaseException | None = error
    while link is not None and not torch.cuda.is_available():
        if any(words in str(link).lower() for words in NO_CUDA):
            return True
        link = link.__cause__ or link.__context__
    return False
