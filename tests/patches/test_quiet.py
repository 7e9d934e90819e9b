"""The state that probes and verification change is as it was afterwards."""

from __future__ import annotations

import contextlib

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
