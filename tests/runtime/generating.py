"""Tiny language models of random weights with candidates for them, and greedy generation: eager, and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import CompileConfig, GemmaConfig, GemmaForCausalLM, MistralConfig, MistralForCausalLM, StaticCache

import fastkernels
from fastkernels.tasks.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L2.gated_mlp import LlamaMLP
from tests.conftest import tiny_llama

PROMPT, NEW = 12, 20
WINDOW = 16  # reached while generating


class MyRMSNorm(RMSNorm):
    pass


class MyGemmaRMSNorm(GemmaRMSNorm):
    pass


class MyLlamaMLP(LlamaMLP):
    pass


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 101,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
SITES = 7  # five norms, two MLPs


def llama() -> nn.Module:
    return tiny_llama()


def gemma() -> nn.Module:
    torch.manual_seed(0)
    return GemmaForCausalLM(GemmaConfig(**SIZES)).eval()


def mistral() -> nn.Module:
    """Every layer has a sliding window."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=WINDOW)).eval()


@contextmanager
def patched(model: nn.Module, lowering: Any) -> Iterator[None]:
    norm = {"gemma_rms_norm": MyGemmaRMSNorm} if isinstance(model, GemmaForCausalLM) else {"rms_norm": MyRMSNorm}
    with fastkernels.patch(model, {**norm, "gated_mlp": MyLlamaMLP}, lowering=lowering) as p:
        assert len(p.report.applied) == SITES
        yield


def generate(model: nn.Module, **how: Any) -> list[list[int]]:
    """The new tokens of two prompts, always as many."""
    ids = torch.randint(1, 101, (2, PROMPT), generator=torch.Generator().manual_seed(1)).to(model.device)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **how)
    assert made.shape == (2, PROMPT + NEW)
    return made[:, PROMPT:].tolist()


def made_early(model: nn.Module) -> StaticCache:
    """A cache with its memory, which transformers otherwise takes while prefilling."""
    config = model.config
    cache = StaticCache(config=config, max_cache_len=PROMPT + NEW)
    cache.early_initialization(
        batch_size=2, num_heads=config.num_key_value_heads, head_dim=16, dtype=model.dtype, device=model.device
    )
    return cache


def compiling(**options: Any) -> dict[str, Any]:
    """Arguments of ``generate`` that compile decoding with our backend, on the CPU too."""
    config = CompileConfig(
        backend="fastkernels", mode=None, fullgraph=True, options={"mode": "reduce-overhead", **options}
    )
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}
