"""The model that a config describes, with few layers and no values, and how each of its modules was constructed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.source import CONFIGS, Weights, packaged_configs, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LAYER_KEYS = ("num_hidden_layers", "encoder_layers", "decoder_layers")
# After how many layers another kind comes again; no list tells these.
STEPS = ("decoder_sparse_step", "attn_layer_period", "expert_layer_period", "interleave_moe_layer_step")
BUILT_IN = torch.bfloat16  # so that what a model computes in float32 whatever its dtype can be told apart


@dataclass(frozen=True, kw_only=True)
class Described:
    """A model on the meta device.

    Args:
        name: as the user gave it.
        model: with ``layers`` of the ``of_layers`` layers that the config has.
        dtype: what the config says its weights are in.
        constructed: the constructor's arguments of each module, by its ``id``.
    """

    name: str
    model: nn.Module
    config: PreTrainedConfig
    dtype: torch.dtype
    layers: int
    of_layers: int
    constructed: Mapping[int, Mapping[str, Any]]


def describe_model(name: str, *, layers: int | None = None) -> Described:
    """Builds the model of a packaged config, a config file, a folder with one, or a hub id whose config is cached.

    Args:
        layers: how many to build; by default the fewest that show each kind of layer, and at least two.

    Raises:
        EvaluationError: there is no such config, or transformers cannot build a model of it.
    """
    from transformers.modeling_utils import PreTrainedModel

    from fastkernels.evaluation.e2e.weights import config_of

    fields = fields_of(name)
    part = _text(fields)
    has = min((part[key] for key in LAYER_KEYS if isinstance(part.get(key), int)), default=0)
    wanted = None
    if has:
        wanted = min(layers or enough_layers(_text(config_of(Weights(config=fields)).to_dict()), has), has)
        part |= {key: value[:wanted] for key, value in part.items() if _by_layer(value, has)}
    config = config_of(Weights(config=fields, layers=wanted))
    reason = ""
    for build in _builders(config):
        constructed: dict[int, tuple[nn.Module, Mapping[str, Any]]] = {}
        try:
            with torch.device("meta"), recorded_constructors(constructed):
                model = build(config, dtype=BUILT_IN).eval()
        except Exception as error:  # noqa: BLE001 - a config can break a constructor in any way; it is reported
            reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        if not isinstance(model, PreTrainedModel):
            continue
        live = {id(part) for part in model.modules()}
        return Described(
            name=name,
            model=model,
            config=config,
            dtype=getattr(config, "dtype", None) or torch.float32,
            layers=wanted or 0,
            of_layers=has,
            constructed={key: arguments for key, (_, arguments) in constructed.items() if key in live},
        )
    raise EvaluationError(f"{name}: no model can be built of its config: {reason or 'no class of transformers fits'}.")


def fields_of(name: str) -> dict[str, Any]:
    """The fields of a config: a packaged name, a file, a folder that holds config.json, or a hub id in the cache.

    Raises:
        EvaluationError: nothing of these; the message lists the packaged names.
    """
    given = Path(name).expanduser()
    if (CONFIGS / f"{name}.json").is_file() or given.is_file():
        return dict(read_config(str(given) if given.is_file() else name))
    if given.is_dir():
        return dict(read_config(str(given / "config.json")))
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
    except Exception as error:  # anything may be in that file, and the hub's client raises many kinds
        raise EvaluationError(
            f"{name}: no packaged config ({', '.join(packaged_configs())}), no file or folder here, and not in the "
            "hub's cache. Give the path of a config.json."
        ) from error
    return dict(config.to_dict())


def enough_layers(fields: Mapping[str, Any], layers: int = 0) -> int:
    """The fewest layers that show every kind: whatever a list of ``layers`` items tells apart, sparse ones after dense
    ones; at least two.

    Args:
        fields: of the whole config, with what its class derives: many tell their layers apart by a period alone.

    >>> enough_layers({"layer_types": ["full"] * 3 + ["linear"] + ["full"] * 4}, 8), enough_layers({})
    (4, 2)
    >>> enough_layers({"first_k_dense_replace": 3})
    4
    """
    lists = [value for value in fields.values() if _by_layer(value, layers)]
    kinds = [repr(kind) for kind in zip(*lists, strict=True)]
    firsts = [kinds.index(kind) + 1 for kind in set(kinds)]
    dense = fields.get("first_k_dense_replace")
    steps = [fields.get(key) for key in STEPS]
    return max(2, *firsts, dense + 1 if isinstance(dense, int) else 0, *(s for s in steps if isinstance(s, int)))


def _by_layer(value: Any, layers: int) -> bool:
    """Whether a config's field has an item a layer."""
    return isinstance(value, list) and len(value) == layers > 0


def _text(fields: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that has the layers of a language model."""
    part = fields.get("text_config")
    return part if isinstance(part, dict) else fields


def _builders(config: PreTrainedConfig) -> Iterator[Callable[..., nn.Module]]:
    import transformers

    for architecture in config.architectures or ():
        named = getattr(transformers, architecture, None)
        if named is not None and hasattr(named, "_from_config"):
            yield named._from_config
    yield transformers.AutoModelForCausalLM.from_config
    yield transformers.AutoModel.from_config


@contextmanager
def recorded_constructors(into: dict[int, tuple[nn.Module, Mapping[str, Any]]]) -> Iterator[None]:
    """Notes the arguments with which modules are constructed, by the interpreter's own call events.

    Nothing of torch or transformers is replaced. A profiler that was set is set again at the end.
    """
    codes: dict[type, Any] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_code.co_name != "__init__" or not frame.f_code.co_argcount:
            return
        module = frame.f_locals.get(frame.f_code.co_varnames[0])
        if not isinstance(module, nn.Module) or id(module) in into:
            return
        cls = type(module)
        if cls not in codes:
            codes[cls] = getattr(inspect.unwrap(cls.__init__), "__code__", None)
        if codes[cls] is frame.f_code:
            names, args, kwargs, values = inspect.getargvalues(frame)
            arguments = {name: values[name] for name in names[1:]}
            arguments |= {name: values[name] for name in _keyword_only(frame)}
            if args is not None and values[args]:
                arguments[f"*{args}"] = values[args]
            into[id(module)] = (module, arguments | (dict(values[kwargs]) if kwargs is not None else {}))

    former = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(former)


def _keyword_only(frame: FrameType) -> tuple[str, ...]:
    code = frame.f_code
    return code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
