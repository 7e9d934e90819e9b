"""Configs of the five architectures that extraction must show, tiny and published."""

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
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
    },
}
# Published sizes; the others are packaged.
MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "dtype": "bfloat16",
}
PACKAGED = {
    "llama": "llama-3.1-8b",
    "gemma": "gemma-2-9b",
    "whisper": "whisper-large-v3",
    "vit": "vit-large-patch16-224",
}


def tiny(name: str, folder: Path) -> str:
    """A file with the tiny config of that name."""
    return written(TINY[name], folder / f"tiny-{name}.json")


def written(fields: dict[str, object], file: Path) -> str:
    file.write_text(json.dumps(fields))
    return str(file)
