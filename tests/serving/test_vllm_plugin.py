"""The entry point itself: vLLM calls it in each process of every user who has fastkernels installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fastkernels
from fastkernels.errors import ServingError
from fastkernels.serving import vllm_hooks
from fastkernels.serving.vllm_plugin import register

INHERITED = {k: v for k, v in os.environ.items() if not k.startswith("FASTKERNELS_")}


def test_without_settings_it_imports_nothing_and_does_nothing():
    imported = "sorted({'torch', 'vllm', 'transformers', 'pydantic', 'numpy'} & set(sys.modules))"
    code = f"import sys; from fastkernels.serving.vllm_plugin import register; register(); print({imported})"
    done = subprocess.run([sys.executable, "-c", code], env=INHERITED, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bad_setting_is_raised_for_vllm_ends_a_process_whose_plugin_raises(monkeypatch):
    monkeypatch.setenv("FASTKERNELS_ON_ERROR", "never")
    with pytest.raises(ServingError, match="FASTKERNELS_ON_ERROR=never: it takes stop, serve"):
        register()


def test_a_hook_goes_around_once_however_often_it_is_put_in():
    class Owner:
        def ask(self):
            return ["original"]

    def hook(original, owner):
        return ["hook", *original(owner)]

    vllm_hooks._around(Owner, "ask", hook)
    vllm_hooks._around(Owner, "ask", hook)
    assert Owner().ask() == ["hook", "original"]


def test_every_public_name_is_there_when_asked_for():
    assert all(getattr(fastkernels, name) is not None for name in fastkernels.__all__)
    assert set(fastkernels.__all__) <= set(dir(fastkernels))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fastkernels.nothing
