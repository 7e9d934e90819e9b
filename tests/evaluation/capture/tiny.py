"""Tiny models of transformers, for captures."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

COMMON = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def mixtral(**overrides):
    return _model(MixtralConfig(**(COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2} | overrides)))


def llama(**overrides):
    return _model(LlamaConfig(**(COMMON | overrides)))


def _model(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def prompt(batch=2, length=5, seed=0):
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(seed))


def generate(model, ids, count):
    """Prefill and ``count - 1`` decode steps."""
    with torch.no_grad():
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
