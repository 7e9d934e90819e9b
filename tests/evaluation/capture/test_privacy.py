"""What models of images and sound are given stays out of a capture, unless it is asked for."""

from __future__ import annotations

import pytest
import torch
import transformers

from fastkernels.evaluation.capture.capture import capture
from fastkernels.evaluation.capture.store import load_capture, value_of
from tests.evaluation.capture.tiny import COMMON

TEXT = COMMON | {"num_hidden_layers": 3}
IMAGE = torch.linspace(-1, 1, 3 * 28 * 28).view(1, 3, 28, 28)
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}


def built(cls, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(config).eval()


def llava():
    vision = transformers.CLIPVisionConfig(**VISION, image_size=28, patch_size=14, projection_dim=32)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=transformers.LlamaConfig(**TEXT), image_token_index=127
    )
    ids = torch.tensor([[5, 9, *[127] * 4, 17, 33]])
    return built(transformers.LlavaForConditionalGeneration, config), {"input_ids": ids, "pixel_values": IMAGE}


def qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 14, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(
        text_config=TEXT | {"rope_parameters": rope, "bos_token_id": 1, "eos_token_id": 2},
        vision_config=vision,
        image_token_id=126,
        vision_start_token_id=125,
        vision_end_token_id=124,
        video_token_id=123,
    )
    ids = torch.tensor([[5, 9, 125, *[126] * 4, 124, 17, 33]])
    patches = torch.linspace(-1, 1, 16 * 1176).view(16, 1176)
    given = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]])}
    kinds = (ids == 126).long()
    return built(transformers.Qwen2VLForConditionalGeneration, config), {
        "input_ids": ids,
        "mm_token_type_ids": kinds,
        **given,
    }


def vit():
    config = transformers.ViTConfig(**VISION, image_size=28, patch_size=14)
    return built(transformers.ViTForImageClassification, config), {"pixel_values": IMAGE}


def whisper():
    sizes = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "num_mel_bins": 8, "max_source_positions": 20}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    config = transformers.WhisperConfig(vocab_size=128, max_target_positions=20, **sizes, **heads, **tokens)
    return built(transformers.WhisperForConditionalGeneration, config), {
        "input_features": torch.linspace(-1, 1, 320).view(1, 8, 40)
    }


def towers(model):
    """What no tensor of may be kept, by its path: all of an image's tower, a sound's encoder; of an image's model
    alone, what comes before a second attention."""
    if type(model).__name__ == "ViTForImageClassification":
        return ("vit.embeddings", "vit.layers.0.")
    return ("model.vision_tower", "model.visual", "model.multi_modal_projector", "model.encoder")


def stored(make, folder, *, prompts):
    model, given = make()
    seen, stops = [], towers(model)
    for path, part in model.named_modules():
        if path.startswith(stops):
            part.register_forward_pre_hook(
                lambda module, args, kwargs: seen.extend(
                    t.clone() for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)
                ),
                with_kwargs=True,
            )
    with capture(model, values="all", prompts=prompts, out=folder), torch.no_grad():
        if make is vit:
            model(**given)
        else:
            model.generate(**given, max_new_tokens=2, do_sample=False)
    found = load_capture(folder)
    values = [value_of(found, key) for s in found.samples for key in s.values.values()]
    secrets = [t for t in (*given.values(), *seen) if t.numel() > 4 and bool(t.any())]
    assert secrets
    told = [
        s for s in secrets for v in values if v.numel() == s.numel() and torch.equal(v.flatten(), s.flatten().to(v))
    ]
    return found, told


@pytest.mark.parametrize("make", [llava, qwen2_vl, vit, whisper])
def test_neither_prompts_nor_images_nor_sound_are_stored_unless_asked(make, tmp_path):
    found, told = stored(make, tmp_path / "without", prompts=False)
    assert told == []
    assert found.withheld > 0
    assert found.samples  # further in there are calls of the same kinds
    _, told = stored(make, tmp_path / "with", prompts=True)
    assert told
