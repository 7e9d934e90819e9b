"""Tiny real models that several tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from torch import nn

torch.set_num_threads(1)


def tiny_llama(**overrides: object) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 101,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**(config | overrides))).eval()


@pytest.fixture
def llama() -> nn.Module:
    return tiny_llama()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(101, (2, 12), generator=torch.Generator().manual_seed(1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A GPU test is skipped, by name, where there is no GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
