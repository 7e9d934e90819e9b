"""Tiny random models of (nearly) every transformers model type, with inputs, on the CPU and offline.

A config is made by shrinking the type's default config attribute by attribute: every width becomes the same small
number, so that two sub-models which meet at a projection still fit, and every stack keeps one layer of each kind.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import transformers
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.auto import modeling_auto

WIDTH, FFN, HEADS, HEAD_DIM, LAYERS, VOCAB = 64, 96, 4, 16, 2, 128
BATCH, SEQ, POSITIONS, IMAGE, PATCH, FRAMES, WAVE = 2, 12, 128, 64, 16, 64, 3840
FIRST_ID, LAST_ID = 4, 64  # ids of ordinary tokens; special ones lie outside

_MAPPINGS = ["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_MAPPING_NAMES"]
_MAPPINGS += [n for n in sorted(vars(modeling_auto)) if n.startswith("MODEL_") and n.endswith("_MAPPING_NAMES")]


def _class_names() -> dict[str, list[str]]:
    """The model classes of each type, the one to prefer first."""
    names: dict[str, list[str]] = {}
    for mapping in _MAPPINGS:
        for model_type, name in getattr(modeling_auto, mapping).items():
            names.setdefault(model_type, []).extend([name] if isinstance(name, str) else name)
    return names


_CLASSES = _class_names()
MODEL_TYPES: list[str] = sorted(_CLASSES)


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A small model in eval mode with inputs it accepts."""

    model_type: str
    model: PreTrainedModel
    inputs: dict[str, Any]

    def run(self) -> list[torch.Tensor]:
        """The floating point tensors of one forward pass, in the order of the output's fields."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a few forwards draw noise
            return list(_floats(self.model(**self.inputs)))


def _floats(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Cache):
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _floats(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _floats(item)


# --- configs -------------------------------------------------------------------------------------------------------

# The first pattern which matches an attribute's whole name says what becomes of its numbers.
_SET, _CAP = "set", "cap"
_RULES: list[tuple[str, str, int]] = [
    (r"num_kv_shared_layers", _SET, 0),
    (r"(first_k_dense_replace|num_dense_layers|num_nextn_predict_layers|num_mtp_layers)", _CAP, 1),
    (r"(num_hidden_groups|inner_group_num|num_residual_layers|num_adapter_layers|max_window_layers)", _CAP, LAYERS),
    (r"(depth|layers|n_layers?|.*_layers|.*_depth|.*_num_blocks|num_blocks|resampler_depth)", _CAP, LAYERS),
    (r"(.*num_key_value_heads|num_kv_heads|kv_n_heads|linear_num_key_heads)", _CAP, 2),
    (r"mamba_n(um)?_heads", _SET, 8),
    (r"qk_head_dim", _SET, 2 * HEAD_DIM),
    (r"num_pos_feats", _SET, WIDTH // 2),
    (r"(vit_dim|bottleneck_features|decoder_in_channels|projector_out_channels)", _SET, WIDTH),
    (r"(base_channels)", _CAP, 32),
    (r"(latent_query_num|mm_tokens_per_image)", _CAP, 4),
    (r"upsample_groups", _SET, WIDTH),
    (r"rotary_dim", _CAP, HEAD_DIM // 2),
    (r"window_size", _CAP, 2),
    (r"(n_head|.*_heads|attention_heads|.*_heads_per_layer)", _SET, HEADS),
    (r"(.*head_dim|d_kv|d_head|kv_channels|.*head_size|dim_head|mamba_d_head)", _SET, HEAD_DIM),
    (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts|num_routed_experts)", _CAP, 4),
    (r"(num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts|n_group|num_expert_group)", _CAP, 2),
    (r"topk_group", _CAP, 1),
    (r"(.*intermediate_(size|dim)|.*intermediate_size_mlp|.*ffn_dim|d_ff|dff|dim_ff|.*mlp_dim|.*ffn_hidden_size"
     r"|d_inner|n_inner|.*feedforward_dim|.*dim_feedforward|feed_forward_size|.*feed_forward_hidden_size"
     r"|.*mlp_hidden_size|share_expert_dim|shared_expert_intermediate_size)", _SET, FFN),
    (r"(q|kv|o)_lora_rank", _SET, 32),
    (r"(vocab_size|.*_vocab_size|vocab_size_.*|codebook_size|num_embeddings|encoder_hash_byte_group_vocab)",
     _CAP, VOCAB),
    (r"max_source_positions", _CAP, FRAMES // 2),
    (r"(max_(?!2d).*positions?(_embeddings)?|.*_max_position_embeddings|n_positions|n_ctx|num_position_embeddings)",
     _CAP, POSITIONS),
    (r"(sliding_window|attention_window|local_attention|attention_chunk_size|attention_window_size)", _CAP, 8),
    (r"(hidden_size|.*_hidden_size|d_model|n_embd|dim|embed_dim|.*_embed_dim|embedding_size|.*_embedding_size"
     r"|hidden_dim|.*_hidden_dim|embedding_dim|projection_dim|.*proj(ection)?_dim|out_hidden_size|output_dim"
     r"|text_hidden_size|.*_projection_size|word_embed_proj_dim|lru_width|hidden_sizes|.*_hidden_sizes|embed_dims"
     r"|entity_emb_size|.*_out_dim|.*_in_dim|fpn_feature_size|mask_feature_size|emb_dim|.*d_latents|project_dim"
     r"|encoder_width|condition_dim|adapter_input_size|hidden_size_.*|codevector_dim|classifier_proj_size)",
     _SET, WIDTH),
    (r"image_size|img_size|pretrain_image_size|input_size", _CAP, IMAGE),
    (r"patch_size", _CAP, PATCH),
    (r"(num_queries|num_query_tokens|.*num_latents|resampler_n_latents|num_proposals|.*_num_proposals)", _CAP, 8),
    (r"(depths|.*_depths|blocks_per_stage|num_block_repeats|stage_num_blocks)", _CAP, LAYERS),
    (r"(conv_dim|tdnn_dim|num_filters|upsample_initial_channel|conv_channels|.*conv_channels?)", _CAP, 32),
    (r"(num_conv_pos_embedding_groups)", _CAP, 2),
    (r"(chunk_size|mamba_chunk_size)", _CAP, 8),
]  # fmt: skip
_COMPILED = [(re.compile(pattern), how, number) for pattern, how, number in _RULES]
_SCALED = re.compile(
    r"(.*hidden_sizes|embed_dims?|num_heads|num_attention_heads|embed_dim_per_stage|num_attention_heads_per_stage)"
)
_INDICES = re.compile(
    r"(?!encode).*(indexes|indices|_idxs|layer_ids|hook_ids|cross_attention_layers|moe_layers|extract_layers"
    r"|target_layers|vision_feature_layers?|global_attention_blocks)"
)
_TOKEN = re.compile(r".*(token_id|token_index|_id|token_ids)")
_BASE_FIELDS = {f.name for f in dataclasses.fields(PreTrainedConfig)}


class _Shrinker:
    def __init__(self) -> None:
        self.token_ids: dict[int, int] = {}

    def token(self, value: int) -> int:
        """A small id for a special token, the same wherever the large one stands."""
        return self.token_ids.setdefault(value, VOCAB - 1 - len(self.token_ids)) if value >= LAST_ID else value

    def number(self, name: str, value: int) -> int:
        if value <= 0:
            return value
        if name == "window_size" and value >= 64:  # counted in pixels
            return 4 * PATCH
        for pattern, how, number in _COMPILED:
            if pattern.fullmatch(name):
                return number if how == _SET else min(value, number)
        return self.token(value) if _TOKEN.fullmatch(name) else value

    def value(self, name: str, value: Any) -> Any:
        if isinstance(value, PreTrainedConfig):
            return self.config(value)
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            return self.number(name, value)
        if name in ("initializer_range", "init_std") and isinstance(value, float):
            return max(value, 0.1)  # at this width a smaller range would let the signal vanish
        if isinstance(value, (list, tuple)) and value:
            if all(isinstance(v, int) and v > 0 for v in value) and _SCALED.fullmatch(name):
                # Stages of different widths keep their proportions.
                unit = math.gcd(*value)
                small = type(value)(v // unit * (1 if "heads" in name else 16) for v in value)
                return small if max(small) < max(value) else value
            if _INDICES.fullmatch(name):
                return value if max(value) < LAYERS else type(value)([LAYERS - 1])
            return type(value)(self.value(name, v) for v in value)
        if isinstance(value, dict) and name not in ("id2label", "label2id", "rope_parameters"):
            return {k: self.value(k, v) if isinstance(k, str) else v for k, v in value.items()}
        return value

    def config(self, default: PreTrainedConfig) -> PreTrainedConfig:
        cls = type(default)
        if cls.__name__.startswith("Timm"):
            return _resnet(default)
        override = dict(_CONFIG.get(cls.model_type, {}))
        names = [f.name for f in dataclasses.fields(cls) if f.name not in _BASE_FIELDS]
        values = {n: v for n in names if (v := _get(default, n, self)) is not self}
        try:
            plain = vars(cls())
        except Exception:  # noqa: BLE001 - a config which needs arguments
            plain = {}
        new: dict[str, Any] = {}
        layers = cls.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        depth = values.get(layers)
        if outputs := _get(default, "out_indices", None):
            override.setdefault("out_indices", list(outputs))
        if isinstance(depth, int) and depth > LAYERS:
            per_layer = {n: v for n, v in values.items() if isinstance(v, (list, tuple)) and len(v) == depth}
            kept = _one_of_each(list(per_layer.values()), depth)
            stages = getattr(default, "stage_names", None)
            if stages and len(stages) == depth + 1:  # a backbone which counts its layers as stages
                wanted = len(default.out_indices)
                kept = list(range(max(LAYERS, wanted)))
                override["out_indices"] = [len(kept) + 1 - wanted + i for i in range(wanted)]
            values.update({n: type(v)(v[i] for i in kept) for n, v in per_layer.items()})
            new[layers] = len(kept)
        new.update({n: values[n] for n, v in override.items() if v is ... and n in values})
        override = {n: self.value(n, v()) if callable(v) else v for n, v in override.items() if v is not ...}
        if "head_dim" in values and values["head_dim"] is None:
            values["head_dim"] = HEAD_DIM
        for part in ("", "encoder_", "decoder_"):
            if values.get(f"{part}num_key_value_heads") == values.get(f"{part}num_attention_heads", 0):
                new[f"{part}num_key_value_heads"] = HEADS
        for name, value in values.items():
            small = new.get(name, self.value(name, value))
            if name not in plain or not _same(small, plain[name]):
                new[name] = small
        if isinstance(new.get("image_size"), int) and isinstance(patch := values.get("patch_size"), int) and patch >= 8:
            new["image_size"] = 4 * min(patch, PATCH)
        if getattr(default, "rope_parameters", None):
            new["rope_parameters"] = _shrink_rope(default.rope_parameters, cls.model_type)
        return _make(cls, new | override)


def _make(cls: Callable[..., PreTrainedConfig], values: dict[str, Any]) -> PreTrainedConfig:
    try:
        return cls(**values)
    except (TypeError, AttributeError):  # a class which takes its sub-configs as dicts only
        return cls(**{n: v.to_dict() if isinstance(v, PreTrainedConfig) else v for n, v in values.items()})


def _get(config: PreTrainedConfig, name: str, default: Any) -> Any:
    try:
        return getattr(config, name, default)
    except Exception:  # noqa: BLE001 - an attribute which differs from layer to layer refuses to be read
        return default


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and not isinstance(a, PreTrainedConfig) and a == b


def _one_of_each(lists: list[Any], depth: int) -> list[int]:
    """Layers of which the per-layer lists together show every value; lists with a value for each layer don't count."""
    kept: set[int] = set()
    for items in lists:
        firsts = {repr(v): i for i, v in reversed(list(enumerate(items)))}
        if len(firsts) <= 4:
            kept |= set(firsts.values())
    rest = (i for i in range(depth) if i not in kept)
    while len(kept) < LAYERS:
        kept.add(next(rest))
    return sorted(kept)


def _shrink_rope(rope: dict[str, Any], model_type: str) -> dict[str, Any]:
    if all(isinstance(v, dict) for v in rope.values()):
        return {k: _shrink_rope(v, model_type) for k, v in rope.items()}
    rope = dict(rope)
    rotated = int(HEAD_DIM * rope.get("partial_rotary_factor", 1.0)) // 2
    if sections := rope.get("mrope_section", [16, 24, 24] if model_type in _MROPE else None):
        small = [max(1, v * rotated // sum(sections)) for v in sections]
        small[0] += rotated - sum(small)
        rope["mrope_section"] = small
    for key in ("short_factor", "long_factor"):
        if key in rope:
            rope[key] = rope[key][:rotated]
    return rope


def _resnet(timm: PreTrainedConfig) -> PreTrainedConfig:
    """timm is no dependency of ours: a ResNet with as many outputs stands in."""
    make: Callable[..., PreTrainedConfig] = transformers.ResNetConfig
    return make(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1] * 4, layer_type="basic",
        out_indices=list(getattr(timm, "out_indices", None) or [4]),
    )  # fmt: skip


# --- special cases -------------------------------------------------------------------------------------------------

# Their code has a default for the sections, which fits only the full head size.
_MROPE = {"qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text", "glm4v_moe_text", "glm_image_text", "glm_ocr_text"}
_MROPE |= {"paddleocr_vl_text", "qwen2_5_omni_text"}

# What to give the constructor of a config of this model type, at whatever depth it is met: `...` keeps the default,
# a function makes what is then shrunk in its turn.
_CONFIG: dict[str, dict[str, Any]] = {
    # The default config is incomplete: these values have to be chosen by whoever makes one.
    "autoformer": {
        "prediction_length": 4, "context_length": 8, "num_time_features": 1, "label_length": 4, "moving_average": 3,
    },
    "informer": {"prediction_length": 4, "context_length": 8, "num_time_features": 1},
    "time_series_transformer": {"prediction_length": 4, "context_length": 8, "num_time_features": 1},
    "blip-2": {"image_token_index": 100},
    "instructblip": {"image_token_index": 100},
    "instructblipvideo": {"video_token_index": 100},
    "chameleon": {"vocabulary_map": {"<image>": 100}},
    "emu3": {"vocabulary_map": {"<image>": 100, "<|extra_200|>": 101}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 4]
    }}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": FFN},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "granite4_vision": {
        "text_config": transformers.GraniteConfig, "deepstack_layer_map": [[-1, 0]], "downsample_rate": "2/4",
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "nemotron": {"num_key_value_heads": 2},
    "moonshine_streaming": {"num_key_value_heads": HEADS},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "pp_doclayout_v2": {"class_thresholds": [0.5, 0.5], "class_order": [0, 1]},
    "fun_asr_nano": {"adaptor_config": {
        "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": WIDTH // 4, "num_hidden_layers": 2,
        "projector_hidden_size": WIDTH,
    }},
    "diffusion_gemma": {"vision_config": lambda: CONFIG_MAPPING["gemma4_vision"]()},
    "shieldgemma2": {"yes_token_index": 5, "no_token_index": 6},
    "reformer": {
        "is_decoder": True, "attn_layers": ("local", "lsh"), "axial_pos_shape": (8, 16), "hash_seed": 0,
        "axial_pos_embds_dim": (16, 48), "lsh_attn_chunk_length": 4, "local_attn_chunk_length": 4, "num_buckets": 2,
    },
    "step3p5": {"sliding_window": 8},
    "t5gemma2_text": {"dropout_rate": 0.0, "attn_logit_softcapping": None},
    "xmod": {"default_language": "en_XX"},
    "encoder-decoder": {
        "encoder": transformers.BertConfig,
        "decoder": lambda: transformers.BertConfig(is_decoder=True, add_cross_attention=True),
    },
    "vision-encoder-decoder": {
        "encoder": transformers.ViTConfig,
        "decoder": lambda: transformers.BertConfig(is_decoder=True, add_cross_attention=True),
    },
    "speech-encoder-decoder": {
        "encoder": transformers.Wav2Vec2Config,
        "decoder": lambda: transformers.BertConfig(is_decoder=True, add_cross_attention=True),
    },
    "vision-text-dual-encoder": {"vision_config": transformers.ViTConfig, "text_config": transformers.BertConfig},
    "musicgen": {
        "text_encoder": transformers.T5Config, "audio_encoder": transformers.EncodecConfig,
        "decoder": transformers.MusicgenDecoderConfig,
    },
    "musicgen_melody": {
        "text_encoder": transformers.T5Config, "audio_encoder": transformers.EncodecConfig,
        "decoder": transformers.MusicgenMelodyDecoderConfig,
    },
    # Layers of each kind at other places than the shrinker puts them.
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 2 * WIDTH, "attention_head_dim": 2 * HEAD_DIM,
    },
    "seggpt": {"merge_index": 0, "image_size": (128, 64)},
    "sapiens2": {"num_key_value_heads_per_layer": [4, 2], "num_key_value_attention_heads": 2},
    # Sizes which depend on one another.
    "align": {"projection_dim": ...},
    "align_vision_model": {"hidden_dim": ...},
    "bit": {"num_groups": 4},
    "blt": {"use_cache": False},
    "clvp_decoder": {"decoder_fixing_codes": (83, 45, 45, 99)},
    "clvp_encoder": {"num_attention_heads": 2},  # its rotary size is at least 32
    "clap_audio_model": {"patch_embeds_hidden_size": 8},
    "cvt": {"depth": (1, 2, 3)},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [WIDTH, WIDTH]},
    "depth_pro": {"patch_size": 56, "intermediate_hook_ids": (1, 0)},
    "efficientloftr": {"hidden_size": ..., "num_attention_heads": ..., "num_key_value_heads": ..., "head_dim": ...},
    "efficientnet": {"hidden_dim": ...},
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [2, 2, 4]}
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "fastspeech2_conformer_hifigan": {"model_in_dim": ...},
    "speecht5_hifigan": {"model_in_dim": ...},
    "gemma4_audio": {"subsampling_conv_channels": ...},
    "gemma4_text": {"head_dim": HEAD_DIM, "global_head_dim": 2 * HEAD_DIM},
    "hgnet_v2": {"hidden_sizes": ...},
    "hunyuan_vl_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2, 2]}
    },
    "layoutlmv3": {"coordinate_size": 8, "shape_size": 16},
    "levit": {"image_size": 128, "hidden_sizes": ..., "num_attention_heads": ...},
    "lilt": {"hidden_size": 96},
    "mamba2": {"num_heads": 8},  # expand * hidden_size / head_dim
    "sam_vision_model": {"output_channels": WIDTH},
    "sam_hq_vision_model": {"output_channels": WIDTH},
    "sam2_hiera_det_model": {"hidden_size": 16, "global_attention_blocks": [2]},
    "sam2_vision_model": {
        "backbone_channel_list": [128, 64, 32, 16], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    },
    "uvdoc_backbone": {"out_indices": [1, 2, 3, 4, 5, 6]},
    "dinov3_vit": {"return_class_token": True},
    "sam3_vision_model": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "oneformer": {"conv_dim": WIDTH, "mask_dim": WIDTH},
    "superglue": {"hidden_size": ...},
    "textnet": {"hidden_sizes": ...},
    "tvp": {"num_frames": 2, "max_img_size": 64, "visual_prompt_size": 8},
    "vibevoice_acoustic_tokenizer": {"num_filters": 4},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 4},
    "vibevoice_acoustic_tokenizer_decoder": {"num_filters": 4},
    "neucodec": {"quantization_dim": 2 * WIDTH, "encoder_hidden_size": 8},
    "xcodec2": {"quantization_dim": 2 * WIDTH, "encoder_hidden_size": 8},
    "xlstm": {"use_cache": False},
    "llava_next": {"image_grid_pinpoints": [[112, 56]]},
    "llava_next_video": {"image_grid_pinpoints": [[112, 56]]},
    "llava_onevision": {"image_grid_pinpoints": [[112, 56]]},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "vitmatte": {"fusion_hidden_sizes": [64, 32, 16, 16], "convstream_hidden_sizes": [16, 32, 64]},
}  # fmt: skip

# The class, where the one which the mappings give first cannot be called by itself.
_CLASS = {"speecht5": "SpeechT5ForSpeechToText"}


def tiny_config(model_type: str) -> PreTrainedConfig:
    cls = CONFIG_MAPPING[model_type]
    parts = {n: v() for n, v in _CONFIG.get(model_type, {}).items() if callable(v)}
    return _Shrinker().config(_make(cls, parts))


# --- inputs --------------------------------------------------------------------------------------------------------


def _parameters(function: Callable[..., Any]) -> dict[str, bool]:
    """The named parameters of a function, and whether each one is required."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


# What configs call the number of features of a frame of sound.
_MEL = ("feature_projection_input_dim", "num_mel_bins", "input_dim", "feature_size", "input_feat_size", "n_mels")


def _call(makers: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    return {name: make() for name, make in makers.items()}


def _refuse(names: list[str]) -> Any:
    raise NotImplementedError(f"no way to make {names}")


class _Inputs:
    """Makes the inputs of a model by the names in its forward's signature."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.config = model, model.config
        self.random = torch.Generator().manual_seed(0)
        self.names = _parameters(model.forward)
        main = model.main_input_name
        self.main = [main] if isinstance(main, str) else list(main)

    def find(self, *names: str, default: Any = None) -> Any:
        """The first of these attributes, in the config or the nearest sub-config which has one."""
        queue = [self.config]
        while queue:
            config = queue.pop(0)
            for name in names:
                if (value := _get(config, name, None)) is not None:
                    return value
            queue += [v for v in vars(config).values() if isinstance(v, PreTrainedConfig)]
        return default

    def floats(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.random)

    def ints(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.random)

    def ids(self, length: int = SEQ) -> torch.Tensor:
        try:
            vocab = self.config.get_text_config().vocab_size
        except (AttributeError, ValueError):  # no text, or several
            vocab = None
        vocab = vocab or self.find("vocab_size", "text_vocab_size", "encoder_vocab_size", default=VOCAB)
        return self.ints(min(FIRST_ID, vocab - 1), min(vocab, LAST_ID), BATCH, length)

    def image(self) -> tuple[int, int, int]:
        size = self.find("image_size", "img_size", "input_size", default=IMAGE * 2)
        if isinstance(size, Mapping):
            size = [size["height"], size["width"]]
        height, width = (size, size) if isinstance(size, int) else size[-2:]
        return self.find("num_channels", "in_channels", "in_chans", default=3), height, width

    def patches(self) -> torch.Tensor:
        channels, patch = self.find("in_channels", "in_chans", "num_channels", default=3), self.find("patch_size")
        return self.floats(
            BATCH * 16, channels * self.find("temporal_patch_size", "patch_temporal", default=1) * patch * patch
        )

    def boxes(self) -> torch.Tensor:
        corner = self.ints(0, 30, BATCH, SEQ, 2)
        return torch.cat([corner, corner + self.ints(0, 30, BATCH, SEQ, 2)], dim=-1)

    def ways(self, name: str) -> list[Callable[[], Any]]:
        """Ways to make an input, the likelier first."""
        mel = self.find(*_MEL, default=80)
        grid = torch.tensor([[1, 4, 4]] * BATCH)
        frames = [
            lambda: self.floats(BATCH, self.find("num_frames", default=2), *self.image()),
            lambda: self.floats(BATCH, 3, *self.image()),  # an image as a whole and in two parts
        ]
        pixels = [lambda: self.floats(BATCH, *self.image()), *frames, self.patches]
        if "image_grid_thw" in self.names or "grid_thw" in self.names:
            side = self.find("patch_size")
            pixels = [
                self.patches,
                lambda: self.patches().view(BATCH * 16, 3, side, side),
                lambda: self.patches().view(1, BATCH * 16, 3, side, side),
            ]
        elif "target_sizes" in self.names:
            side = self.find("patch_size")
            pixels = [lambda: self.floats(1, 3, side, side * BATCH * 16)]
        elif "spatial_shapes" in self.names or "pixel_position_ids" in self.names:
            pixels = [lambda: self.patches().view(BATCH, 16, -1)]
        table: dict[str, list[Callable[[], Any]]] = {
            "input_ids": [self.ids],
            "qformer_input_ids": [self.ids],
            "task_inputs": [lambda: self.ids(self.find("task_seq_len"))],
            "bbox": [self.boxes, lambda: self.boxes().float()],
            "spatial_shapes": [lambda: torch.tensor([[4, 4]] * BATCH)],
            "target_sizes": [lambda: torch.tensor([[4, 4]] * BATCH)],
            "pixel_attention_mask": [lambda: torch.ones(BATCH, 16, dtype=torch.long)],
            "pixel_position_ids": [lambda: torch.cartesian_prod(*[torch.arange(4)] * 2).expand(BATCH, -1, -1)],
            "merge_sizes": [lambda: torch.tensor([2] * BATCH)],
            "image_merge_sizes": [lambda: torch.tensor([2] * BATCH)],
            "high_res_pixel_values": pixels,
            "visual_feats": [lambda: self.floats(BATCH, 4, self.find("visual_feat_dim"))],
            "visual_pos": [lambda: self.floats(BATCH, 4, 4)],
            "states": [lambda: self.floats(BATCH, SEQ, self.find("state_dim"))],
            "actions": [lambda: self.floats(BATCH, SEQ, self.find("act_dim"))],
            "rewards": [lambda: self.floats(BATCH, SEQ, 1)],
            "returns_to_go": [lambda: self.floats(BATCH, SEQ, 1)],
            "timesteps": [lambda: torch.arange(SEQ).expand(BATCH, -1)],
            "inputs_embeds": [lambda: self.floats(BATCH, SEQ, WIDTH)],
            "latents": [lambda: self.floats(BATCH, WIDTH, 8), lambda: self.floats(BATCH, 8, WIDTH)],
            "query_embeds": [lambda: self.floats(BATCH, 8, WIDTH)],
            "encoder_hidden_states": [lambda: self.floats(BATCH, 16, WIDTH)],
            "inputs": [lambda: self.floats(BATCH, SEQ, WIDTH), lambda: self.floats(BATCH, WAVE)],
            "flattened_patches": [
                lambda: torch.cat([self.ints(1, 5, BATCH, 16, 2).float(), self.floats(BATCH, 16, WIDTH)], dim=-1)
            ],
            "audio_mel": [lambda: self.floats(BATCH, FRAMES, 128)],
            "audio_mel_mask": [lambda: torch.zeros(BATCH, FRAMES, dtype=torch.bool)],
            "past_time_features": [lambda: self.floats(BATCH, 15, 1)],
            "past_observed_mask": [lambda: torch.ones(BATCH, 15)],
            "future_time_features": [lambda: self.floats(BATCH, 4, 1)],
            "future_values": [lambda: self.floats(BATCH, 4)],
            "past_values_padding": [lambda: torch.zeros(BATCH, 64, dtype=torch.long)],
            "freq": [lambda: torch.zeros(BATCH, 1, dtype=torch.long)],
            "decoder_input_ids": [lambda: self.ids(6)],
            "pixel_values": pixels,
            "pixel_values_videos": frames,
            "image_sizes": [lambda: torch.tensor([self.image()[1:]] * BATCH)],
            "hidden_states": [self.patches],
            "grid_thw": [lambda: grid],
            "image_grid_thw": [lambda: grid],
            "input_features": [lambda: self.floats(BATCH, mel, FRAMES), lambda: self.floats(BATCH, FRAMES, mel)],
            "input_features_mask": [lambda: torch.ones(BATCH, FRAMES, dtype=torch.long)],
            "input_values": [
                lambda: self.floats(BATCH, WAVE),
                lambda: self.floats(BATCH, 1, WAVE),
                lambda: self.floats(BATCH, FRAMES, mel),
            ],
            "past_values": [
                lambda: self.floats(BATCH, self.find("context_length", default=32), 1),
                lambda: self.floats(BATCH, 15),  # the context and the lags before it
                lambda: self.floats(BATCH, 64),
            ],
        }
        setting = self.find(name)
        return table.get(name, [] if setting is None else [lambda: setting])

    def some(self, names: list[str]) -> Iterator[Callable[[], dict[str, Any]]]:
        ways = {n: self.ways(n) for n in names}
        if missing := [n for n, way in ways.items() if not way]:
            ways |= {n: [lambda: _refuse(missing)] for n in missing}
        for which in range(max(len(way) for way in ways.values())):
            chosen = {n: way[min(which, len(way) - 1)] for n, way in ways.items()}
            yield functools.partial(_call, chosen)

    def with_media(self, kind: str, main: str) -> Iterator[Callable[[], dict[str, Any]]]:
        """Text with a placeholder token for each feature of an image or a sound."""
        features = getattr(self.model, f"get_{kind}_features", None)
        token = self.find(f"{kind}_token_id", f"{kind}_token_index")
        if features is None or token is None or main not in self.names:
            return
        wanted = _parameters(features)
        grids = ("image_grid_thw", "target_sizes")

        def illustrate(media: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            made = media()
            with torch.no_grad():
                found = features(**made)
            found = list(_floats(getattr(found, "pooler_output", found)))
            count = sum(f.numel() // f.shape[-1] for f in found) // BATCH
            ids = torch.cat([torch.full((BATCH, count), token), self.ids()], dim=1)
            if "mm_token_type_ids" in self.names:
                made["mm_token_type_ids"] = (ids == token).long()
            return {"input_ids": ids} | {n: v for n, v in made.items() if n in self.names}

        for optional in [(*grids, "image_sizes"), grids]:
            for media in self.some([n for n in wanted if n == main or wanted[n] or n in optional]):
                yield functools.partial(illustrate, media)

    def attempts(self) -> Iterator[Callable[[], dict[str, Any]]]:
        if special := _EXTRA.get(self.config.model_type):
            yield lambda: {n: make(self) for n, make in special.items()}
        yield from self.with_media("image", "pixel_values")
        yield from self.with_media("audio", "input_features")
        first = list(dict.fromkeys([n for n, required in self.names.items() if required] + self.main))
        if "decoder_input_ids" in self.names and self.find("is_encoder_decoder", default=False):
            first.append("decoder_input_ids")
        first += [n for n in _ALWAYS if n in self.names and n not in first]
        richer = [n for n in _RICHER if n in self.names and n not in first]
        if richer:
            yield from self.some(first + richer)
        yield from self.some(first)


# Optional inputs which can be made for every model which knows them, and inputs to leave out if they don't fit.
_ALWAYS = (
    "bbox", "visual_feats", "visual_pos", "actions", "rewards", "returns_to_go", "timesteps", "future_time_features",
    "future_values",
)  # fmt: skip
_RICHER = (
    "pixel_values", "pixel_attention_mask", "spatial_shapes", "target_sizes", "input_features",
    "input_features_mask", "input_ids",
)  # fmt: skip

# All the inputs of a model type, where its own shapes are not to be seen in signature and config.
_EXTRA: dict[str, dict[str, Callable[[_Inputs], Any]]] = {
    "audio-spectrogram-transformer": {"input_values": lambda i: i.floats(BATCH, 1024, 128)},
    "blip_2_qformer": {
        "query_embeds": lambda i: i.floats(BATCH, 8, WIDTH),
        "encoder_hidden_states": lambda i: i.floats(BATCH, 16, WIDTH),
    },
    "clap": {"input_ids": _Inputs.ids, "input_features": lambda i: i.floats(BATCH, 1, FRAMES, 64)},
    "depth_pro": {"pixel_values": lambda i: i.floats(BATCH, 3, 224, 224)},
    "dia": {"input_ids": _Inputs.ids, "decoder_input_ids": lambda i: i.ints(FIRST_ID, LAST_ID, BATCH, 6, 9)},
    "emu3": {"input_ids": _Inputs.ids},  # its image tokens come from a processor
    "gemma4_audio": {"input_features": lambda i: i.floats(BATCH, FRAMES, 128)},
    "fun_asr_nano_encoder": {
        "input_features": lambda i: i.floats(BATCH, FRAMES, 560),
        "input_features_mask": lambda i: torch.ones(BATCH, FRAMES, dtype=torch.long),
    },
    "granite_speech5_ctc": {"input_features": lambda i: i.floats(BATCH, FRAMES, 320)},
    "granite_speech5_encoder": {"input_features": lambda i: i.floats(BATCH, FRAMES, 320)},
    "idefics": {
        "input_ids": _Inputs.ids,
        "pixel_values": lambda i: i.floats(BATCH, 1, *i.image()),
        "image_attention_mask": lambda i: torch.ones(BATCH, SEQ, 1, dtype=torch.long),
    },
    "kosmos-2": {
        "pixel_values": lambda i: i.floats(BATCH, *i.image()),
        "input_ids": _Inputs.ids,
        "image_embeds_position_mask": lambda i: (torch.arange(SEQ) < 4).long().expand(BATCH, -1),
    },
    "kyutai_speech_to_text": {"input_ids": lambda i: i.ints(FIRST_ID, LAST_ID, BATCH, SEQ, 33)},
    "musicgen": {"input_ids": _Inputs.ids, "decoder_input_ids": lambda i: i.ints(FIRST_ID, LAST_ID, BATCH * 4, 6)},
    "musicgen_melody": {
        "input_ids": _Inputs.ids,
        "input_features": lambda i: i.floats(BATCH, 8, 12),
        "decoder_input_ids": lambda i: i.ints(FIRST_ID, LAST_ID, BATCH * 4, 6),
    },
    "superglue": {"pixel_values": lambda i: i.floats(BATCH, 2, 3, 64, 64)},
    "qwen3_asr_encoder": {
        "input_features": lambda i: i.floats(BATCH, 128, 200),
        "input_features_mask": lambda i: torch.ones(BATCH, 200, dtype=torch.long),
    },
    "neucodec": {
        "input_values": lambda i: i.floats(BATCH, 1, 320 * SEQ),
        "input_features": lambda i: i.floats(BATCH, SEQ, 160),
    },
    "seggpt": {
        name: lambda i: i.floats(BATCH, 3, 64, 64) for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")
    },
    "tvp": {"input_ids": lambda i: i.ids()[:1], "pixel_values": lambda i: i.floats(1, 2, 3, 64, 64)},
    "vibevoice_acoustic_tokenizer_encoder": {"hidden_states": lambda i: i.floats(BATCH, 1, 3200)},
    "vibevoice_acoustic_tokenizer_decoder": {"hidden_states": lambda i: i.floats(BATCH, WIDTH, 4)},
    "voxtral_realtime": {"input_ids": _Inputs.ids, "input_features": lambda i: i.floats(BATCH, 128, 8 * SEQ)},
    "xcodec2": {
        "input_values": lambda i: i.floats(BATCH, 1, 320 * SEQ),
        "input_features": lambda i: i.floats(BATCH, SEQ, 160),
    },
}  # fmt: skip


def _settle(tiny: Tiny) -> None:
    """Lets batch norms take the statistics of the inputs: with those of an untrained net a deep signal vanishes."""
    norms = [m for m in tiny.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        if norms:
            tiny.run()
    except ValueError:  # one value in a channel has no statistics
        pass
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def build(model_type: str) -> Tiny:
    """A tiny model of this type; the same weights and inputs at every call."""
    config = tiny_config(model_type)
    classes = [getattr(transformers, name) for name in [_CLASS.get(model_type), *_CLASSES[model_type]] if name]
    # The causal LM of a multimodal type may take the config of its text part only.
    cls = next((c for c in classes if c.config_class is None or isinstance(config, c.config_class)), classes[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config).float().eval()
    errors: list[str] = []
    for attempt in _Inputs(model).attempts():
        try:
            tiny = Tiny(model_type, model, attempt())
            tiny.run()
        except Exception as error:  # noqa: BLE001 - whatever a forward says about inputs which don't fit
            errors.append(f"{type(error).__name__}: {error}")
        else:
            _settle(tiny)
            return tiny
    raise RuntimeError("; ".join(errors))
