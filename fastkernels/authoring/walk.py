"""One forward pass of a model without values: what each of its modules is called with, as shapes and dtypes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.patches.site import Draws, Site

BATCH, LENGTH = 2, 64  # sequences, and tokens of each
DECODER_LENGTH = 16
SAMPLES = 16000  # of audio: one second
# What cannot run without values, as it looks at them: stands for itself with an output like its first argument.
VALUE_DEPENDENT = ("fused_experts",)


@dataclass(frozen=True, kw_only=True)
class Call:
    """Positional and keyword arguments of a module's first call; tensors are on the meta device."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """First calls by module path, in the order of the pass; ``failure`` says where it ended early, if it did."""

    calls: Mapping[str, Call]
    failure: str = ""


def walk(model: nn.Module, sites: Iterable[Site]) -> Walk:
    """Runs ``model`` (on the meta device) once on inputs of its own kind, and notes every module's first call."""
    inputs = inputs_for(model)
    if inputs is None:
        return Walk(
            calls={}, failure=f"{type(model).__name__} takes neither token ids, pixels, audio nor a time series"
        )
    calls: dict[str, Call] = {}
    with ExitStack() as stack:
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(_note(calls, path), with_kwargs=True).remove)
        for site in sites:
            if site.task.name in VALUE_DEPENDENT:
                stack.enter_context(_without_values(site.module))
        stack.enter_context(torch.device("meta"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_EveryConditionHolds())
        try:
            model(**inputs)
        except Exception as error:  # noqa: BLE001 - a host's code may raise anything where it wants values
            text = " ".join(str(error).split())[:200]
            return Walk(calls=calls, failure=f"after {list(calls)[-1:]}: {type(error).__name__}: {text}")
    return Walk(calls=calls)


def probed(site: Site, dtype: torch.dtype) -> Sequence[Any] | None:
    """What the task is called with at a site in its own probe; None where the probe needs values."""
    draws = Draws(seed=0, device=torch.device("cpu"), dtype=dtype, site_dtype=dtype)

    def seen(*args: Any, **kwargs: Any) -> None:
        raise _Seen(args, kwargs)

    try:
        for scenario in site.proposal.scenarios(draws):
            scenario(seen)
    except _Seen as call:
        args, kwargs = call.args
        arguments = site.proposal.enter(args, kwargs)
        return None if isinstance(arguments, str) else arguments
    except (RuntimeError, NotImplementedError):
        return None
    return None


class _Seen(Exception):
    """Carries a call's arguments out of a scenario."""


def inputs_for(model: nn.Module) -> dict[str, Any] | None:
    """Inputs of the model's own kind, on the meta device: token ids, pixels, audio or a time series."""
    names = inspect.signature(model.forward).parameters
    config: Any = model.config
    ids = torch.empty(BATCH, LENGTH, dtype=torch.int64, device="meta")
    dtype = next(model.parameters()).dtype
    if "input_ids" in names:
        inputs: dict[str, Any] = {"input_ids": ids}
    elif "pixel_values" in names:
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        pixels = (BATCH, getattr(config, "num_channels", 3), height, width)
        inputs = {"pixel_values": torch.empty(pixels, dtype=dtype, device="meta")}
    elif "input_features" in names:
        frames = (BATCH, config.num_mel_bins, 2 * config.max_source_positions)
        inputs = {"input_features": torch.empty(frames, dtype=dtype, device="meta")}
    elif "past_values" in names:
        series = (BATCH, config.context_length, config.num_input_channels)
        inputs = {"past_values": torch.empty(series, dtype=dtype, device="meta")}
    elif "input_values" in names:
        inputs = {"input_values": torch.empty(BATCH, SAMPLES, dtype=dtype, device="meta")}
    else:
        return None
    if "decoder_input_ids" in names:
        inputs["decoder_input_ids"] = ids[:, :DECODER_LENGTH]
    if "use_cache" in names:
        inputs["use_cache"] = False
    return inputs


def _note(calls: dict[str, Call], path: str) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(path, Call(args=args, kwargs=dict(kwargs)))

    return note


@contextmanager
def _without_values(module: nn.Module) -> Iterator[None]:
    """An instance's own forward for the time of the pass; the model is ours alone and had none."""
    module.forward = lambda x, *args, **kwargs: torch.empty_like(x)  # type: ignore[method-assign] # taken off below
    try:
        yield
    finally:
        del module.__dict__["forward"]


class _EveryConditionHolds(TorchDispatchMode):
    """Answers what is asked of values that are not there (is nothing padded, nothing packed?) with yes."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))
