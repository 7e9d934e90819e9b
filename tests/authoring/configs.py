"""Configs of the five architectures that extraction must show, tiny and published, and of others, tiny."""

from __future__ import annotations

import json
from pathlib import Path

DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 67,
    "rms_norm_eps": 1e-5,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
TINY = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **DECODER},
    "mixtral": {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4, **DECODER},
    "gemma": {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 8, **DECODER},
    "whisper": {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "vocab_size": 67,
        "num_mel_bins": 8,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "max_source_positions": 12,
        "max_target_positions": 32,
        "decoder_start_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "is_encoder_decoder": True,
    },
    "vit": {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        **VISION,
    },
}
# Of further kinds, each with something that the five have not.
MORE = {
    "clip": {  # two towers, both wanted by one call
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 16,
        "text_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 67,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        "vision_config": VISION,
    },
    "llava": {  # a tower that runs for images only
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": {"model_type": "llama", **DECODER},
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "image_token_index": 66,
    },
    "gpt-oss": {  # experts that no task describes
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        **DECODER,
    },
    "qwen3-next": {  # kinds of layers by a period that its class alone knows
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "head_dim": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        **DECODER,
        "num_hidden_layers": 8,
    },
    "deepseek-v3": {  # latent attention, dense layers before sparse ones
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "head_dim": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        **DECODER,
        "num_key_value_heads": 4,
    },
    "wav2vec2": {  # a convolution that is parametrised after it is built
        "architectures": ["Wav2Vec2ForCTC"],
        "model_type": "wav2vec2",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 32,
        "conv_dim": [16, 16],
        "conv_kernel": [10, 3],
        "conv_stride": [5, 2],
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    },
    "bart": {  # positions that are a table's rows, of an input whose shape alone is read
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "vocab_size": 67,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    },
    "mamba": {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "hidden_size": 32,
        "state_size": 8,
        "num_hidden_layers": 2,
        "vocab_size": 67,
    },
}
PACKAGED = {
    "llama": "llama-3.1-8b",
    "mixtral": "mixtral-8x7b",
    "gemma": "gemma-2-9b",
    "whisper": "whisper-large-v3",
    "vit": "vit-large-patch16-224",
}


def tiny(name: str, folder: Path) -> str:
    """A file with the tiny config of that name."""
    return written((TINY | MORE)[name], folder / f"tiny-{name}.json")


def written(fields: dict[str, object], file: Path) -> str:
    file.write_text(json.dumps(fields))
    return str(file)
