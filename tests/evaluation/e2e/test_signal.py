"""Spectrograms, latents and trajectories: models are called as they are meant to be, and errors have their units."""

from __future__ import annotations

import math

import pytest
import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.registry import family_of
from fastkernels.evaluation.e2e.families.signal import FRAMES_PER_TOKEN, Audio, Latents, Trajectory
from tests.evaluation.e2e.tiny import TINY, tiny


@pytest.mark.parametrize("family", [Audio, Latents, Trajectory])
def test_every_family_is_found_by_its_workload(family):
    (name,) = family().default_workloads()
    assert isinstance(family_of(name), family)


def test_speecht5_answers_alike_twice_although_it_drops_out_in_inference():
    case = TINY["speecht5"]
    model = case.model()
    assert model.config.speech_decoder_prenet_dropout > 0
    one, two = (case.session(model).answer()["mel"] for _ in range(2))
    assert torch.equal(one, two) and one.shape == (4, 400, 80)


def test_fastspeech2_gives_clips_of_one_length_in_every_dtype():
    case = TINY["fastspeech2"]
    model = case.model()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        mel = case.session(model.to(dtype), check_size=2).answer()["mel"]
        assert mel.shape == (2, 64 * FRAMES_PER_TOKEN, 80) and mel.abs().sum() > 0
    assert len(model.decoder._forward_pre_hooks) == 1


def test_a_louder_spectrum_is_as_far_as_it_is_louder():
    mel = torch.randn(2, 30, 80, generator=torch.Generator().manual_seed(0))
    assert Audio().distances({"mel": mel + 0.5}, {"mel": mel})["log-spectral distance"].value == pytest.approx(0.5)


def test_psnr_is_against_the_oracle():
    image = torch.linspace(0, 1, 300).view(1, 3, 10, 10)
    found = Latents().distances({"sample": image + 0.01}, {"sample": image})
    assert found["PSNR"].shown == pytest.approx(40) and 0 < found["cosine distance"].value < 1e-3


def test_the_error_of_a_trajectory_is_in_deviations_of_the_oracles():
    wanted = torch.tensor([[0.0, 2.0, 0.0, 2.0]])  # deviation 1
    off = wanted.clone()
    off[0, 0] = 0.5
    found = Trajectory().distances({"prediction": off}, {"prediction": wanted})
    assert found["normalised MSE"].value == pytest.approx(0.0625)
    assert found["largest error"].value == pytest.approx(0.5)
    with pytest.raises(EvaluationError, match="all one value"):
        Trajectory().distances({"prediction": off}, {"prediction": torch.ones(1, 4)})


def test_a_forecast_is_on_the_scale_of_its_inputs():
    case = TINY["time-series-transformer"]
    model = case.model()
    inputs = case.family.draw(model, case.session(model)._check)
    far = inputs | {name: 100 * inputs[name] for name in ("past_values", "future_values")}
    with torch.inference_mode():
        near, loud = (case.family.read(model, x, model(**x))["prediction"] for x in (inputs, far))
    assert 50 < (loud.abs().mean() / near.abs().mean()) < 200


def test_a_model_of_another_kind_is_refused_by_name():
    model = TINY["bert"].model()
    with pytest.raises(EvaluationError, match="BertModel takes neither states nor past_values"):
        tiny(Trajectory(), lambda: model).session(model).answer()
    with pytest.raises(EvaluationError, match="BertModel takes neither pixel_values nor a sample"):
        tiny(Latents(), lambda: model).session(model).answer()


def test_a_diffusers_unet_makes_one_step():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4,
    )  # fmt: skip
    case = tiny(Latents(), lambda: model)
    answer = case.session(model).answer()
    assert answer["sample"].shape == (4, 4, 16, 16)
    session = case.session(model)
    assert case.family.plausible(session, case.workload, session.serve(case.workload).outputs)[0] == 1.0
    assert math.isclose(case.family.distances(answer, answer)["PSNR"].shown, 300)
