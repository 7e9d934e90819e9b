"""An entry's model: real weights, or a published config filled at random, directly on the device.

The oracle must hold the values of the run that it judges. Values are therefore made in float32, rounded to the entry's
dtype, and only then widened; parameter by parameter, so that 30 billion of them fit.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, initialization
from transformers.core_model_loading import build_glob_alternation
from transformers.utils import logging as transformers_logging

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.scenario import Entry
from fastkernels.evaluation.e2e.source import Weights, read_config

AUTO_CLASSES = {
    "LLM": transformers.AutoModelForCausalLM,
    "Embedding": transformers.AutoModel,
    "Recommendation": transformers.AutoModelForSequenceClassification,
    "Classification": transformers.AutoModelForImageClassification,
    "Detection": transformers.AutoModelForObjectDetection,
    "Segmentation": transformers.AutoModelForSemanticSegmentation,
    "ASR": transformers.AutoModelForSpeechSeq2Seq,
    "Audio": transformers.AutoModelForTextToSpectrogram,
    "Trajectory": transformers.AutoModelForTimeSeriesPrediction,
}
LAYER_KEYS = ("num_hidden_layers", "encoder_layers", "decoder_layers")
# An init function that draws nothing writes the same in every dtype, up to the rounding at the end.
DRAWING = {"uniform_", "normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"} | {
    "trunc_normal_",
    "orthogonal_",
    "sparse_",
}
UNUSED = "pooler"  # the one part that checkpoints of encoders often lack, and that no family reads


def build(entry: Entry, *, device: str | torch.device, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The entry's model in eval mode, on the device, with transformers' own choice of attention.

    The same entry gives the same values on the same kind of device: in a wider ``dtype`` those of the entry's, widened.
    A model of a config has no tokenizer: its ``name_or_path`` is empty; of loaded weights it is the folder.

    Args:
        dtype: of parameters; the entry's by default.

    Raises:
        EvaluationError: the model cannot be found or built, or its weights leave parameters without a value.
    """
    reason = entry.unsupported()
    if reason is not None:
        raise EvaluationError(reason)
    kept: torch.dtype = getattr(torch, entry.dtype)
    device = torch.device(device)
    source = entry.weights
    # Workers call this in inference mode, but parameters of a model that is patched are no inference tensors.
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        if source is None or source.config is None:
            model = _loaded(entry, kept, dtype or kept)
        else:
            model = _drawn(entry, source, device, kept, dtype or kept)
        _round(model, kept)
        return model.to(device).eval()


def describe(entry: Entry) -> str:
    """Where the weights come from, in a line of a report.

    >>> weights = {"config": "qwen3-30b-a3b", "layers": 16, "seed": 7}
    >>> describe(Entry(model="a/b", tp=1, dtype="bfloat16", workloads=["LLM.mixed"], weights=weights))
    'config qwen3-30b-a3b, 16 of 48 layers, random with seed 7'
    """
    weights = entry.weights
    if weights is None:
        return f"{entry.model} from the hub"
    if weights.config is None:
        return f"package {weights.package}, {weights.folder}" if weights.package else f"{weights.path}"
    fields = read_config(weights.config)
    if isinstance(weights.config, str):
        shown = "/".join(Path(weights.config).parts[-2:])  # of a file, its folder too: many are named config.json
    else:
        shown = f"of the scenario ({fields['model_type']})"
    layers = ""
    if weights.layers is not None:
        layers = f", {weights.layers} of {'+'.join(str(fields[k]) for k in LAYER_KEYS if k in fields)} layers"
    return f"config {shown}{layers}, random with seed {weights.seed}"


def parameters(model: nn.Module) -> int:
    """Number of parameters; tied ones count once.

    >>> parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in model.parameters())


def config_of(weights: Weights) -> PreTrainedConfig:
    """The transformers config of a config source, cut to its ``layers``.

    Raises:
        EvaluationError: transformers knows no such model type or rejects a field, or there are no layers to cut.
    """
    fields = dict(read_config(weights.config or {}))
    if weights.layers is not None:
        part = fields["text_config"] = dict(fields["text_config"]) if "text_config" in fields else fields
        there = [key for key in LAYER_KEYS if key in part]
        if part is fields:
            del fields["text_config"]
        if not there or weights.layers > min(part[key] for key in there):
            has = ", ".join(f"{key} {part[key]}" for key in there) or "no number of layers"
            raise EvaluationError(
                f"config {fields['model_type']}: layers {weights.layers}: it has {has}. Give fewer, or leave it out."
            )
        part.update(dict.fromkeys(there, weights.layers))
        if "layer_types" in part:
            part["layer_types"] = part["layer_types"][: weights.layers]
    try:
        return AutoConfig.for_model(**fields)
    except Exception as error:  # a user's file may break a config in any way
        raise EvaluationError(f"config {fields['model_type']}: {_line(error)}") from error


def _drawn(
    entry: Entry, weights: Weights, device: torch.device, kept: torch.dtype, dtype: torch.dtype
) -> PreTrainedModel:
    """Built without values, then filled on the device by transformers' own initialisation."""
    config = config_of(weights)
    try:
        with torch.device("meta"):
            model = _class(entry, config)._from_config(config, dtype=dtype)
    except Exception as error:  # a config may break a constructor in any way
        raise EvaluationError(f"{entry.model}: cannot be built of {describe(entry)}: {_line(error)}") from error
    wide = _stays_wide(model, kept)
    for name, parameter in model.named_parameters():
        if name in wide and parameter.itemsize < torch.float32.itemsize:
            parameter.data = parameter.data.float()
    model.to_empty(device=device)
    model.tie_weights()
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    with _seeded(weights.seed):
        model.initialize_weights()
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    empty = [name for name, tensor in tensors if tensor.is_floating_point() and tensor.isnan().any()]
    if empty:
        raise EvaluationError(
            f"{entry.model}: {type(model).__name__} initialises no {', '.join(empty[:3])}. Give weights by path."
        )
    return model


def _loaded(entry: Entry, kept: torch.dtype, dtype: torch.dtype) -> PreTrainedModel:
    """Of a folder or a hub id; the hub's cache is tried before the hub."""
    folder = entry.weights.location() if entry.weights is not None else None
    name = str(folder) if folder is not None else entry.model
    for offline in (True,) if folder is not None else (True, False):
        try:
            config = AutoConfig.from_pretrained(name, local_files_only=offline)
            with _seeded(0):
                model, info = _class(entry, config).from_pretrained(
                    name, dtype=dtype, local_files_only=offline, output_loading_info=True
                )
            break
        except Exception as error:  # noqa: BLE001 - files of users and of the hub may be broken in any way
            reason = _line(error)
    else:
        raise EvaluationError(
            f"{entry.model}: no model can be loaded from {name}: {reason}. Give weights: a path, a package or a config."
        )
    lacking = sorted(key for key in info["missing_keys"] if UNUSED not in key.split("."))
    lacking += sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise EvaluationError(
            f"{entry.model}: {name} has no weights for {len(lacking)} parameters of {type(model).__name__}, "
            f"such as {lacking[0]}. Give the checkpoint of that class."
        )
    return model


def _class(entry: Entry, config: PreTrainedConfig) -> Any:
    """The class that the config names, where transformers has it; else the family's. Encoders go without a head."""
    family = entry.workloads[0].partition(".")[0]
    auto: Any = AUTO_CLASSES.get(family, transformers.AutoModel)
    named = [getattr(transformers, name, None) for name in config.architectures or () if family != "Embedding"]
    found = next((cls for cls in named if cls is not None), None)
    if found is not None:
        return found
    mapped = auto._model_mapping.get(type(config), None)
    if mapped is None:
        raise EvaluationError(
            f"{entry.model}: transformers has no {auto.__name__} for {config.model_type}. "
            "Name a class of transformers in architectures."
        )
    return mapped[0] if isinstance(mapped, tuple) else mapped


def _stays_wide(model: PreTrainedModel, dtype: torch.dtype) -> set[str]:
    """Names of parameters that transformers keeps in float32 when it loads the model in this dtype."""
    plan = list(model._get_dtype_plan(dtype))
    if not plan:
        return set()
    pattern, *_ = build_glob_alternation(plan)
    return {name for name, _ in model.named_parameters() if pattern.search(name)}


def _round(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Rounds what a checkpoint of this dtype would hold, in place. Tables that are computed stay as they are."""
    wide, computed = _stays_wide(model, dtype), {name for name, _ in model.named_non_persistent_buffers()}
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        narrower = tensor.is_floating_point() and tensor.itemsize > dtype.itemsize
        if narrower and name not in wide and name not in computed:
            tensor.copy_(tensor.to(dtype))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Makes transformers' initialisation draw in float32 from seeds of its own, one a tensor, whatever the dtype.

    Its init functions look torch's up in one table; the table is put back at the end.
    """
    table: dict[str, Callable[..., Tensor]] = initialization.TORCH_INIT_FUNCTIONS
    former, numbers = dict(table), itertools.count()

    def draws(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def draw(tensor: Tensor, **options: Any) -> Tensor:
            digest = hashlib.sha256(f"{seed} {next(numbers)}".encode()).digest()
            options["generator"] = torch.Generator(tensor.device).manual_seed(int.from_bytes(digest[:8]) >> 1)
            with torch.no_grad():
                return tensor.copy_(function(torch.empty_like(tensor, dtype=torch.float32), **options))

        return draw

    table.update({name: draws(former[name]) for name in DRAWING})
    try:
        yield
    finally:
        table.update(former)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports: what is wrong there is an error here."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
