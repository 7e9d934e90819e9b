"""A LoRA adapter in PEFT's files, large enough that a tiny model answers otherwise with it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 8


def adapter(folder: Path, model: Path) -> Path:
    """Writes an adapter of query, key, value and down projections of the model in the folder ``model``."""
    config = json.loads((model / "config.json").read_text())
    hidden, head = config["hidden_size"], config["head_dim"]
    heads, shared = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    sizes = {f"self_attn.{name}_proj": (hidden, width) for name, width in (("q", heads), ("k", shared), ("v", shared))}
    sizes["mlp.down_proj"] = (config["intermediate_size"], hidden)
    draw = torch.Generator().manual_seed(7)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (inputs, outputs) in sizes.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(RANK, inputs, generator=draw) * inputs**-0.5
            tensors[f"{path}.lora_B.weight"] = torch.randn(outputs, RANK, generator=draw)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(model),
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": sorted(name.rpartition(".")[2] for name in sizes),
    }
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder
