"""What a candidate builds for itself must be built again when its source changes; what is keyed by content is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fastkernels import conflicts

BAD = Path(__file__).parent / "candidates" / "bad" / "CC_STALE_CACHE.py"
NAME = '"fastkernels_test_bad_cc_stale_cache.bin"'
KEYED = 'f"fastkernels_test_{hashlib.sha256(SOURCE.encode()).hexdigest()[:12]}.bin"'
LIBRARY = '''
import ctypes, subprocess, torch, fastkernels
from pathlib import Path
from torch.library import custom_op
from fastkernels.tasks.L1.relu import ReLU

SOURCE = """
void relu(const float* x, float* y, long n) { for (long i = 0; i < n; ++i) y[i] = x[i] < 0 ? 0 : x[i]; }
"""
BUILT = Path("librelu.so")
if not BUILT.exists():
    Path("relu.c").write_text(SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(BUILT), "relu.c"], check=True)
library = ctypes.CDLL(str(BUILT.resolve()))

@custom_op("stale_artefacts_test::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    wide = x.float().contiguous()
    out = torch.empty_like(wide)
    library.relu(ctypes.c_void_p(wide.data_ptr()), ctypes.c_void_p(out.data_ptr()), ctypes.c_long(wide.numel()))
    return out.to(x.dtype)

@fastkernels.candidate("relu", devices=("cpu",))
class Built(ReLU):
    def forward(self, x):
        return relu(x)
'''


def cell_of(file):
    return next(c for c in conflicts(file, stages=["cache"]).cells if c.stage == "cache")


@pytest.mark.slow
def test_a_name_that_holds_a_hash_of_the_source_is_no_alarm(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    file = tmp_path / "candidate.py"
    file.write_text(
        BAD.read_text().replace(NAME, KEYED).replace("import marshal\n", "import hashlib\nimport marshal\n")
    )
    assert cell_of(file).status == "pass"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_a_shared_library_that_is_not_built_again_is_told_with_the_line_that_loads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "candidate.py"
    file.write_text(LIBRARY)
    cell = cell_of(file)
    assert (cell.status, cell.code) == ("fail", "CC_STALE_CACHE")
    assert "librelu.so" in cell.evidence.text
    assert "CDLL(" in LIBRARY.splitlines()[cell.evidence.line - 1]


def test_a_candidate_that_loads_nothing_is_not_run_again():
    cell = cell_of(BAD.parents[1] / "clean" / "custom_op_silu.py")
    assert cell.status == "skip" and "loads nothing" in cell.reason
