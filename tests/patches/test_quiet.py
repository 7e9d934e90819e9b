"""The state that probes and verification change is as it was afterwards."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import torch
from torch import nn

from fastkernels.patches.probe import quiet


@pytest.mark.parametrize("enabled", [True, False])
def test_cudnn_attention_is_off_within_and_as_it_was_after_an_error(enabled: bool) -> None:
    was, threads = torch.backends.cuda.cudnn_sdp_enabled(), torch.get_num_threads()
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    try:
        seen: list[bool] = []
        with contextlib.suppress(ZeroDivisionError), quiet(nn.Linear(2, 2)):
            seen.append(torch.backends.cuda.cudnn_sdp_enabled())
            seen.append(bool(1 / 0))
        assert seen == [False]
        assert torch.backends.cuda.cudnn_sdp_enabled() is enabled
        assert torch.get_num_threads() == threads
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)


def test_probes_compute_float32_in_float32_whatever_the_model_asked_for():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with quiet(nn.Linear(2, 2)):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_probes_compute_in_float32_under_torchs_newer_setting_too():
    done = subprocess.run([sys.executable, "-c", NEWER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Once set, the newer setting cannot be unset: a process of its own.
NEWER = """
import torch
from fastkernels.patches.probe import quiet
torch.backends.cuda.matmul.fp32_precision = "tf32"
with quiet(torch.nn.Linear(2, 2)):
    assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none"), torch.backends.cuda.matmul.fp32_precision
assert torch.backends.cuda.matmul.fp32_precision == "tf32"
"""
