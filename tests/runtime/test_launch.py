"""Launches: kernels compiled ahead are not launched then, and are right afterwards."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch

from fastkernels.runtime.launch import Launcher, compiling_ahead, is_compiling_ahead, start_compiler


def test_compiling_ahead_ends_with_its_block_whatever_is_raised() -> None:
    assert not is_compiling_ahead()
    seen: list[bool] = []
    with contextlib.suppress(ZeroDivisionError), compiling_ahead():
        seen.append(is_compiling_ahead())
        seen.append(bool(1 / 0))
    assert seen == [True]
    assert not is_compiling_ahead()


def test_no_compiler_is_started_for_the_cpu() -> None:
    before = threading.active_count()
    start_compiler(torch.device("cpu"))
    assert threading.active_count() == before


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_kernel_is_right_after_it_was_compiled_ahead_and_not_launched_before(ahead: bool) -> None:
    from tests.runtime import scale_kernel

    launch = Launcher(scale_kernel.scale)
    x, out = torch.arange(64.0, device="cuda"), torch.zeros(64, device="cuda")
    if ahead:
        with compiling_ahead():
            launch((1, 1), (x, out), (3.0,), (64,), 4)
        assert not out.any()
    for _ in range(2):
        launch((1, 1), (x, out), (3.0,), (64,), 4)
        assert torch.equal(out, x * 3)
        out.zero_()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_kernel_is_compiled_anew_where_another_pointer_is_misaligned() -> None:
    from tests.runtime import scale_kernel

    launch = Launcher(scale_kernel.scale)
    x, out = torch.arange(66.0, device="cuda"), torch.zeros(66, device="cuda")
    for first, to in ((0, 0), (1, 0), (0, 1), (1, 1)):
        # A kernel that takes the misaligned one for aligned would fail.
        launch((1, 1), (x[first:][:64], out[to:][:64]), (3.0,), (64,), 4)
        assert torch.equal(out[to:][:64], x[first:][:64] * 3)
    assert len(launch._compiled) == 4
