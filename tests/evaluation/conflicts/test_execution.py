"""Which kernel runs is told from what runs, not from what a candidate's text says."""

from __future__ import annotations

import pytest

from fastkernels import conflicts

HEAD = """
import ctypes, torch, fastkernels
from fastkernels.tasks.L1.silu import SiLU
"""
SWALLOWED = """
@fastkernels.candidate("silu")
class Swallowing(SiLU):
    def forward(self, x):
        try:
            return torch.ops.nobody_registered.silu(x)
        except Exception:
            return super().forward(x)
"""
AT_IMPORT = """
try:
    library = ctypes.CDLL("/nowhere/libsilu.so")
except OSError:
    library = None

@fastkernels.candidate("silu")
class Unbuilt(SiLU):
    def forward(self, x):
        return super().forward(x) if library is None else library.silu(x)
"""
UNDER_FAKES = """
libc = ctypes.CDLL(None)

@torch.compiler.allow_in_graph
def kernel(x):
    try:
        libc.memchr(ctypes.c_void_p(x.data_ptr()), 1, 0)
    except RuntimeError:
        pass
    return torch.nn.functional.silu(x)

@fastkernels.candidate("silu")
class Allowed(SiLU):
    def forward(self, x):
        return kernel(x)
"""
A_MISS = """
KERNELS = {torch.float64: None}

@fastkernels.candidate("silu")
class Dispatching(SiLU):
    def forward(self, x):
        try:
            return KERNELS[x.dtype](x)
        except KeyError:
            return super().forward(x)
"""
OPTIONAL = """
try:
    import a_package_that_nobody_has as kernels
except ImportError:
    kernels = None

@fastkernels.candidate("silu")
class Optional(SiLU):
    def forward(self, x):
        return super().forward(x) if kernels is None else kernels.silu(x)
"""
NO_DEVICE = """
@fastkernels.candidate("silu")
class OnDevicesOnly(SiLU):
    def forward(self, x):
        try:
            torch.zeros(1, device="cuda")
        except (AssertionError, RuntimeError):
            return super().forward(x)
        return super().forward(x)
"""


def cell_of(tmp_path, body):
    file = tmp_path / "candidate.py"
    file.write_text(HEAD + body)
    report = conflicts(file, stages=["execution"])
    return next(c for c in report.cells if c.stage == "execution")


@pytest.mark.parametrize(
    ("body", "words"),
    [(SWALLOWED, "nobody_registered"), (AT_IMPORT, "library is None"), (UNDER_FAKES, "memchr")],
    ids=["in every call", "at import", "under fake tensors"],
)
def test_a_kernel_given_up_after_an_exception_is_told_with_its_line(tmp_path, body, words):
    cell = cell_of(tmp_path, body)
    assert (cell.status, cell.code, cell.severity) == ("fail", "IN_NOT_EXECUTED", "warning")
    assert words in cell.evidence.text and cell.evidence.line is not None


@pytest.mark.parametrize("body", [A_MISS, OPTIONAL, NO_DEVICE], ids=["look-up", "optional package", "no device"])
def test_ordinary_control_flow_is_no_alarm(tmp_path, body):
    assert cell_of(tmp_path, body).status == "pass"
