"""Models whose answer is a signal: mel spectrograms, latents and images, forecasts and actions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import FastSpeech2ConformerModel

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.batched import BatchedFamily, field
from fastkernels.evaluation.e2e.families.draws import Request, image_size, images, series, token_rows
from fastkernels.evaluation.e2e.families.family import Distance, Tensors
from fastkernels.evaluation.e2e.families.metrics import cosine_distance, psnr, relative_l2
from fastkernels.evaluation.e2e.workload import Workload

FRAMES_PER_TOKEN = 16  # room for models that choose the length of their speech: outputs of a batch have one shape
IMAGE = 64  # where the config gives no size
STEPS = 20  # of an episode
TRAINING_STEPS = 1000  # of diffusion: timesteps are below


class Audio(BatchedFamily):
    """Text to log-mel spectrograms. Where a model continues a spectrogram, it is given one, the same in every arm."""

    names = ("Audio",)
    category = "audio"
    unit = "clips"
    timed = ("mel",)

    def default_workloads(self) -> Mapping[str, Workload]:
        mel = Workload(name="Audio.mel", batch=8, requests=16, input_tokens=(64,), size=(400,))
        return {mel.name: mel}

    def prepare(self, model: nn.Module) -> None:
        super().prepare(model)
        if isinstance(model, FastSpeech2ConformerModel) and not model.decoder._forward_pre_hooks:
            model.decoder.register_forward_pre_hook(_in_dtype)
        if hasattr(model.config, "speech_decoder_prenet_dropout"):
            model.config.speech_decoder_prenet_dropout = 0.0  # SpeechT5 drops out in inference too: noise, not answers

    def draw(self, model: nn.Module, request: Request) -> dict[str, Tensor]:
        rows, config = request.rows, model.config
        ids = token_rows(model, request, rows=rows, tokens=request.tokens, seed=request.seed)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        takes = parameters(model)
        if "decoder_input_values" in takes:
            steps = request.size[0] // config.reduction_factor
            inputs["decoder_input_values"] = images(rows, 1, steps, config.num_mel_bins, request.seed).squeeze(1)
        width = getattr(config, "speaker_embedding_dim", getattr(config, "speaker_embed_dim", None))
        for name in {"speaker_embeddings", "speaker_embedding"} & takes if width else ():
            inputs[name] = gaussian(rows, width, seed=request.seed)
        return inputs

    def read(self, model: nn.Module, inputs: Tensors, raw: Any) -> dict[str, Tensor]:
        mel = field(raw, "spectrogram")
        if "decoder_input_values" not in inputs:
            mel = F.pad(mel, (0, 0, 0, FRAMES_PER_TOKEN * inputs["input_ids"].shape[1] - mel.shape[1]))
        return {"mel": mel}

    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        mel, wanted = outputs["mel"], oracle["mel"]
        main = relative_l2(mel, wanted)
        frames = (mel.double() - wanted.double()).square().mean(-1).sqrt()
        apart = frames.mean().item()  # the spectra are logarithmic already
        return {"mel relative l2": main, "log-spectral distance": Distance(value=apart, shown=apart)}


class Latents(BatchedFamily):
    """One step of a denoiser, or an image through an autoencoder or an image-to-image model."""

    names = ("Latents",)
    category = "latents"
    unit = "samples"
    timed = ("sample",)

    def default_workloads(self) -> Mapping[str, Workload]:
        batch = Workload(name="Latents.batch", batch=4, requests=8)
        return {batch.name: batch}

    def draw(self, model: nn.Module, request: Request) -> dict[str, Tensor]:
        rows, seed, config, takes = request.rows, request.seed, model.config, parameters(model)
        height, width = image_size(config, request.size, IMAGE)
        if "pixel_values" in takes:
            return {"pixel_values": images(rows, getattr(config, "num_channels", 3), height, width, seed)}
        if "sample" not in takes:
            raise EvaluationError(
                f"{type(model).__name__} takes neither pixel_values nor a sample: Latents cannot call it."
            )
        inputs = {"sample": images(rows, config.in_channels, height, width, seed)}
        if "timestep" in takes:  # noisy latents, as a sampler's middle steps see them
            inputs["sample"] = (inputs["sample"] + gaussian(*inputs["sample"].shape, seed=seed + 1)) / math.sqrt(2)
            draw = torch.Generator().manual_seed(seed)
            inputs["timestep"] = torch.randint(TRAINING_STEPS, (rows,), generator=draw)
        if "encoder_hidden_states" in takes:
            inputs["encoder_hidden_states"] = gaussian(rows, 77, config.cross_attention_dim, seed=seed + 2)
        return inputs

    def read(self, model: nn.Module, inputs: Tensors, raw: Any) -> dict[str, Tensor]:
        return {"sample": field(raw, "sample", "reconstruction", "decoded_pixel_values", "logits")}

    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        sample, wanted = outputs["sample"], oracle["sample"]
        return {
            "cosine distance": cosine_distance(sample.flatten(1), wanted.flatten(1)),
            "PSNR": psnr(sample, wanted),
        }


class Trajectory(BatchedFamily):
    """Forecasts of time series, and actions of an episode."""

    names = ("Trajectory",)
    category = "trajectory"
    unit = "windows"
    timed = ("prediction",)

    def default_workloads(self) -> Mapping[str, Workload]:
        batch = Workload(name="Trajectory.batch", batch=32, requests=64)
        return {batch.name: batch}

    def draw(self, model: nn.Module, request: Request) -> dict[str, Tensor]:
        takes = parameters(model)
        if "states" in takes:
            return episodes(model.config, request)
        if "past_time_features" in takes:
            return forecasting(model.config, request)
        if "past_values" in takes:
            config = model.config
            return {"past_values": series(request.rows, config.context_length, config.num_input_channels, request.seed)}
        raise EvaluationError(
            f"{type(model).__name__} takes neither states nor past_values: no Trajectory can be given."
        )

    def read(self, model: nn.Module, inputs: Tensors, raw: Any) -> dict[str, Tensor]:
        for name in ("prediction_outputs", "params"):
            value = getattr(raw, name, None)
            if isinstance(value, (tuple, list)):  # of a distribution, on the scale that the model brought its inputs to
                spread = model.distribution_output.distribution(value, loc=raw.loc, scale=raw.scale)
                return {"prediction": torch.stack([spread.mean, spread.stddev], 1)}
        return {"prediction": field(raw, "prediction_outputs", "action_preds", "regression_outputs")}

    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        relative_l2(outputs["prediction"], oracle["prediction"])  # raises where they cannot be compared
        values, wanted = outputs["prediction"].double(), oracle["prediction"].double()
        wrong, spread = values - wanted, wanted.var(correction=0).item()
        if not spread:
            raise EvaluationError("the oracle's predictions are all one value: no error can be measured against them.")
        mse, most = wrong.square().mean().item() / spread, wrong.abs().max().item() / math.sqrt(spread)
        return {
            "normalised MSE": Distance(value=mse, shown=mse),
            "largest error": Distance(value=most, shown=most),
        }


def episodes(config: Any, request: Request) -> dict[str, Tensor]:
    """States, actions and returns of ``size[0]`` steps, as decision transformers take them."""
    rows, seed, steps = request.rows, request.seed, (request.size or (STEPS,))[0]
    return {
        "states": series(rows, steps, config.state_dim, seed),
        "actions": series(rows, steps, config.act_dim, seed + 1).tanh(),
        "rewards": series(rows, steps, 1, seed + 2),
        "returns_to_go": series(rows, steps, 1, seed + 3),
        "timesteps": torch.arange(steps).expand(rows, -1).contiguous(),
        "attention_mask": torch.ones(rows, steps, dtype=torch.long),
    }


def forecasting(config: Any, request: Request) -> dict[str, Tensor]:
    """Past, future and features of the time, as encoder-decoder forecasters take them (teacher-forced)."""
    rows, seed = request.rows, request.seed
    past, future = config.context_length + max(config.lags_sequence), config.prediction_length
    features = config.num_time_features + config.num_dynamic_real_features
    values, times = (series(rows, past + future, n, s) for n, s in ((config.input_size, seed), (features, seed + 1)))
    if config.input_size == 1:
        values = values.squeeze(-1)
    inputs = {
        "past_values": values[:, :past],
        "past_time_features": times[:, :past],
        "past_observed_mask": torch.ones_like(values[:, :past]),
        "future_values": values[:, past:],
        "future_time_features": times[:, past:],
    }
    if config.num_static_categorical_features:
        draw = torch.Generator().manual_seed(seed)
        ids = [torch.randint(n, (rows, 1), generator=draw) for n in config.cardinality]
        inputs["static_categorical_features"] = torch.cat(ids, 1)
    if config.num_static_real_features:
        inputs["static_real_features"] = gaussian(rows, config.num_static_real_features, seed=seed + 2)
    return inputs


def _in_dtype(decoder: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """FastSpeech2's length regulator returns float32 whatever the model's dtype is, which its decoder cannot take."""
    return args[0].to(next(decoder.parameters()).dtype), *args[1:]


def parameters(model: nn.Module) -> set[str]:
    """Names that the model's class takes."""
    return set(inspect.signature(type(model).forward).parameters)


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
