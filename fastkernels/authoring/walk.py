"""One forward pass of a model without values: what each of its modules is called with, as shapes and dtypes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

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
    """First calls by module path, in the order of the pass; ``failure`` says where it ended early, if it did.
    ``uncalled`` has the parts with parameters that no pass came to, and why."""

    calls: Mapping[str, Call]
    failure: str = ""
    uncalled: Mapping[str, str] = field(default_factory=dict)


def walk(model: PreTrainedModel, sites: Iterable[Site]) -> Walk:
    """Runs ``model`` (on the meta device) once on inputs of its own kind, and notes every module's first call.

    A tower that the model runs only for what it was not given (the images of a model that also reads text) then has
    a pass of its own.
    """
    calls: dict[str, Call] = {}
    uncalled: dict[str, str] = {}
    with ExitStack() as stack:
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(_note(calls, path), with_kwargs=True).remove)
        for site in sites:
            if site.task.name in VALUE_DEPENDENT:
                stack.enter_context(_without_values(site.module))
        stack.enter_context(torch.device("meta"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_EveryConditionHolds())
        failure = _run(model, calls)
        for path, part in model.named_modules():
            if isinstance(part, PreTrainedModel) and path not in calls and not _within(path, uncalled):
                reason = _run(part, calls)
                if reason:
                    uncalled[path] = f"the model does not call it without inputs of its kind; on its own: {reason}"
    return Walk(calls=calls, failure=failure, uncalled={} if failure else uncalled | _untouched(model, calls, uncalled))


def _run(model: PreTrainedModel, calls: Mapping[str, Call]) -> str:
    """Why the model's pass ended early, or nothing."""
    inputs = inputs_for(model)
    if inputs is None:
        return f"{type(model).__name__} takes neither token ids, pixels, audio nor a time series"
    try:
        model(**inputs)
    except Exception as error:  # noqa: BLE001 - a host's code may raise anything where it wants values
        return f"after {list(calls)[-1:]}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _within(path: str, parents: Iterable[str]) -> bool:
    return any(path == parent or path.startswith(f"{parent}.") for parent in parents)


def _untouched(model: PreTrainedModel, calls: Mapping[str, Call], told: Mapping[str, str]) -> dict[str, str]:
    """Direct parts of models whose parameters are in no module that was called."""
    modules = dict(model.named_modules())
    called = [modules[path] for path in calls if not isinstance(modules[path], PreTrainedModel)]
    touched = {id(parameter) for module in called for parameter in module.parameters()}
    found: dict[str, str] = {}
    for path, part in modules.items():
        whole = modules.get(path.rpartition(".")[0])
        if not path or not isinstance(whole, PreTrainedModel) or isinstance(part, PreTrainedModel) or path in calls:
            continue
        own = {id(parameter) for parameter in part.parameters()}
        if own and not own & touched and not _within(path, told):
            found[path] = f"{type(part).__name__}: the model does not call it in this pass"
    return found


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


def inputs_for(model: PreTrainedModel) -> dict[str, Any] | None:
    """Inputs of the model's own kind, on the meta device: token ids, pixels, audio or a time series; text and pixels
    where it embeds both and generates nothing."""
    names = inspect.signature(model.forward).parameters
    config: Any = model.config
    ids = torch.empty(BATCH, LENGTH, dtype=torch.int64, device="meta")
    dtype = next(model.parameters()).dtype
    if "input_ids" in names:
        inputs: dict[str, Any] = {"input_ids": ids}
        tower = getattr(config, "vision_config", None)
        if tower is not None and "pixel_values" in names and not model.can_generate():
            inputs["pixel_values"] = _pixels(tower, dtype)
    elif "pixel_values" in names:
        inputs = {"pixel_values": _pixels(config, dtype)}
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
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values())
    if "use_cache" in names or (hands_on and model.can_generate()):
        inputs["use_cache"] = False
    return inputs


def _pixels(config: Any, dtype: torch.dtype) -> torch.Tensor:
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return torch.empty(BATCH, getattr(config, "num_channels", 3), height, width, dtype=dtype, device="meta")


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
