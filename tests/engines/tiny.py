"""Tiny models with random weights, as a serving engine loads them: weights, configuration, a byte tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 320  # 256 bytes and 3 special tokens, up to the 64 to which engines pad
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # the least that the engines' CPU attention takes
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

# Configuration class of transformers, and what it needs beyond COMMON.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "decoder_sparse_step": 1,
            "norm_topk_prob": True,
            "mlp_only_layers": [],
        },
    ),
    "gemma2": ("Gemma2Config", {"tie_word_embeddings": True, "sliding_window": 64, "query_pre_attn_scalar": 32}),
}


def make(folder: Path | str, name: str, *, dtype: str = "float32", layers: int = 2, **overrides: Any) -> Path:
    """Saves the tiny model ``name`` (a key of ``MODELS``) to ``folder/name`` and returns that path.

    Weights are drawn from one seed, wide enough that greedy tokens do not hang on a rounding. ``overrides`` go to the
    configuration. The tokenizer has one token a byte, a chat template, and no merges.
    """
    import torch
    import transformers

    path = Path(folder) / name
    path.mkdir(parents=True, exist_ok=True)
    kind, special = MODELS[name]
    config = getattr(transformers, kind)(**(COMMON | special | {"num_hidden_layers": layers} | overrides))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.dim() >= 2:
                    # A head tied to a loud embedding repeats its input, whatever the layers say.
                    parameter.mul_(1.0 if config.tie_word_embeddings and "embed" in key else 4.0)
                else:  # norms start at one value, under which a wrong weight would not show
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    _save_tokenizer(path)
    return path


def _save_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(path)
