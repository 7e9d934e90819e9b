"""Tiny models loaded into SGLang's own ModelRunner, one at a time, in this process."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fastkernels.patches.sglang import bypass, rope_bypass
from tests.engines.tiny import make
from tests.patches.sglang.runner import build, close, generate, model_of

STEPS = 6  # forward passes of one generate: a prefill and five decodes


@dataclass(frozen=True)
class Engine:
    """A loaded model, and what it generates unpatched."""

    name: str
    runner: Any
    model: nn.Module
    tokens: list[list[int]]
    logits: Any

    def generate(self) -> tuple[list[list[int]], Any]:
        return generate(self.runner, STEPS)


def tiny(folder: Path, name: str, dtype: str = "float32") -> Path:
    path = make(folder, name, dtype=dtype)
    if name == "gemma2":  # SGLang reads a name that this configuration no longer has
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"hidden_act": config["hidden_activation"]}))
    return path


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """By parameter: a model's name in ``tests.engines.tiny``, perhaps with a dtype after a colon."""
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("sglang is not in this environment")
    name, _, dtype = str(getattr(request, "param", "llama")).partition(":")
    dtype = dtype or "float32"
    path = tiny(tmp_path_factory.mktemp("sglang"), name, dtype)
    try:
        runner = build(path, dtype=dtype)
        yield Engine(name, runner, model_of(runner), *generate(runner, STEPS))
    finally:
        close()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides on the engine's CUDA paths takes them."""
    for module in (bypass, rope_bypass):
        monkeypatch.setattr(module, "on_cuda", lambda: True)
