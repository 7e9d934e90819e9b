"""A lock holds every file of a candidates' folder: any other byte that could run is an error."""

import importlib.util
import py_compile
import subprocess
import sys

import pytest

from fastkernels.errors import ServingError
from fastkernels.serving.lock import check, lock
from tests.serving.candidates import norm


@pytest.fixture(autouse=True)
def _own_bytecode(monkeypatch):
    monkeypatch.setattr(sys, "pycache_prefix", None)  # check() sets it for its process


@pytest.fixture
def folder(tmp_path):
    norm(tmp_path / "mine")
    (tmp_path / "mine" / "common.py").write_text("SCALE = 1.0\n")
    return tmp_path / "mine"


def test_what_was_locked_passes(folder):
    check(folder, lock(folder))


def test_a_lock_may_lie_elsewhere(folder, tmp_path):
    check(folder, lock(folder, tmp_path / "elsewhere.json"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "common.py").write_text("SCALE = 2.0\n"), "common.py has changed"),
        (lambda f: (f / "common.py").unlink(), "common.py is missing"),
        (lambda f: (f / "L1" / "more.so").write_bytes(b"\0"), "L1/more.so is not in the lock"),
        (lambda f: (f / "L1" / "fastkernels.lock").write_text(""), "L1/fastkernels.lock is not in the lock"),
    ],
)
def test_any_other_content_is_refused_by_name(folder, change, said):
    file = lock(folder)
    change(folder)
    with pytest.raises(ServingError, match=said) as error:
        check(folder, file)
    assert f"fastkernels lock {folder.resolve()}" in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": []}'])
def test_what_is_no_lock_is_refused(folder, tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with pytest.raises(ServingError, match="no lock can be read from it"):
        check(folder, tmp_path / "lock")


def test_no_folder_and_an_empty_one_cannot_be_locked(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, said in [("none", "is not a folder"), ("empty", "no files to lock")]:
        with pytest.raises(ServingError, match=said):
            lock(tmp_path / folder)


def test_a_link_to_a_folder_cannot_be_locked(folder, tmp_path):
    (tmp_path / "aside").mkdir()
    (folder / "L2").symlink_to(tmp_path / "aside")
    with pytest.raises(ServingError, match="link to a folder"):
        lock(folder)


def test_bytecode_beside_a_locked_source_does_not_run(folder, tmp_path):
    """Python takes bytecode by its header's word: this one says that it need not be compared with its source."""
    file = lock(folder)
    source = folder / "L1" / "rms_norm.py"
    (tmp_path / "other.py").write_text("raise SystemExit('the bytecode ran')\n")
    py_compile.compile(
        str(tmp_path / "other.py"),
        cfile=importlib.util.cache_from_source(str(source)),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    load = f"from fastkernels.runtime.load import load_candidates; load_candidates({str(folder)!r})"
    checked = f"from fastkernels.serving.lock import check, Path; check({str(folder)!r}, Path({str(file)!r})); {load}"
    assert "the bytecode ran" in subprocess.run([sys.executable, "-c", load], stderr=subprocess.PIPE, text=True).stderr
    subprocess.run([sys.executable, "-c", checked], check=True)
