"""The vllm and sglang stages in the real engines: ``make engine-test``, in each engine's own environment."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastkernels import conflicts
from fastkernels.evaluation.conflicts import CODES

CANDIDATES = Path(__file__).parent / "candidates"
ENGINES = {"vllm": "VL_", "sglang": "SG_"}
BAD = sorted((CANDIDATES / "bad_engine").glob("*.py"))
CLEAN = ("custom_op_silu", "mutating_op_silu", "torch_rms_norm")
TIMEOUT = 280.0  # seconds a stage; the import of an engine alone takes up to 20 where the machine is busy

pytestmark = pytest.mark.timeout(900)

SILU = """
import torch
import fastkernels
from fastkernels.tasks.L1.silu import SiLU

@fastkernels.candidate("silu")
class Version(SiLU):
    def forward(self, x):
        return {factor} * torch.nn.functional.silu(x)
"""


def engine_of(file):
    return next(name for name, prefix in ENGINES.items() if file.stem.startswith(prefix))


def needs(engine):
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not in this environment")


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("file", BAD, ids=lambda f: f.stem)
def test_the_named_code_is_the_only_root(file):
    needs(engine_of(file))
    report = conflicts(file, timeout=TIMEOUT)
    assert [c.code for c in report.roots] == [file.stem]
    assert all(c.root_cause or c.caused_by for c in report.failed)
    root = report.roots[0]
    assert root.stage == engine_of(file) and root.evidence.text
    assert root.after_mend == ("pass" if root.mend.automatic == "opaque" else "not run (no automatic mend)")


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_candidate_passes_the_stage(engine, name):
    needs(engine)
    report = conflicts(CANDIDATES / "clean" / f"{name}.py", stages=[engine], timeout=TIMEOUT)
    cell = report.cells[-1]
    assert (cell.stage, cell.status, cell.reason, cell.evidence.text) == (engine, "pass", "", "")


@pytest.mark.slow
@pytest.mark.engine
def test_the_row_dependent_candidate_is_right_where_nothing_pads():
    needs("vllm")
    report = conflicts(CANDIDATES / "bad_engine" / "SG_ERROR.py", stages=["vllm"], timeout=TIMEOUT)
    assert report.cells[-1].status == "pass"


@pytest.mark.engine
class TestVllmsCompileCache:
    """Two versions of a candidate behind operators, one cache folder, a process for each start."""

    @pytest.fixture
    def versions(self, tmp_path):
        needs("vllm")
        files = [tmp_path / "old" / "silu.py", tmp_path / "new" / "silu.py"]
        for file, factor in zip(files, (1, -1), strict=True):
            file.parent.mkdir()
            file.write_text(SILU.format(factor=factor))
        return files

    def start(self, root, key, *files):
        script = [sys.executable, str(Path(__file__).with_name("compile_in_vllm.py")), str(root), key, *map(str, files)]
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(root / "inductor")}
        return subprocess.run(script, env=environment, capture_output=True, text=True, check=False)

    def told(self, run):
        assert run.returncode == 0, run.stderr[-2000:]
        return json.loads(run.stdout.splitlines()[-1])

    @pytest.mark.slow
    def test_operator_names_alone_do_not_keep_versions_apart(self, tmp_path, versions):
        old, new = versions
        assert self.told(self.start(tmp_path, "same", old)) == {"from_cache": False, "right": True}
        assert self.told(self.start(tmp_path, "same", old, new)) == {"from_cache": True, "right": False}
        alone = self.start(tmp_path, "same", new)
        assert alone.returncode != 0 and "has no attribute 'silu_" in alone.stderr

    @pytest.mark.slow
    def test_the_digest_in_vllms_configuration_keeps_versions_apart(self, tmp_path, versions):
        old, new = versions
        assert self.told(self.start(tmp_path, "digest", old)) == {"from_cache": False, "right": True}
        assert self.told(self.start(tmp_path, "digest", old, new)) == {"from_cache": False, "right": True}
        assert self.told(self.start(tmp_path, "digest", new)) == {"from_cache": True, "right": True}


def test_every_engine_example_is_a_code_of_an_engine():
    assert {f.stem for f in BAD} == {c for c in CODES if c.startswith(tuple(ENGINES.values()))}


def test_without_an_engine_its_stage_is_skipped_with_the_reason():
    absent = [e for e in ENGINES if importlib.util.find_spec(e) is None]
    if not absent:
        pytest.skip("every engine is installed")
    report = conflicts(CANDIDATES / "clean" / "torch_rms_norm.py", stages=absent)
    assert {c.stage: (c.status, c.reason) for c in report.cells[1:]} == {
        e: ("skip", f"{e} is not installed") for e in absent
    }
