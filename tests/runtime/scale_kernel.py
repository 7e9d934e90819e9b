"""A Triton kernel for tests of the launcher: its module needs triton to be imported."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["factor"])
def scale(x, out, factor, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(out + place, tl.load(x + place) * factor)
