"""The digest that goes into an engine's cache key: equal for what compiles equally, else not."""

from __future__ import annotations

import importlib
import sys

import pytest

import fastkernels
from fastkernels.serving.content import digest_of
from tests.conftest import tiny_llama
from tests.serving.candidates import norm


def digest(folder, **more):
    with fastkernels.patch(tiny_llama(), str(folder), **more) as patch:
        return digest_of(patch, str(folder))


@pytest.fixture
def folder(tmp_path):
    return norm(tmp_path / "mine")


def test_the_same_patch_has_the_same_digest(folder):
    assert digest(folder) == digest(folder)


@pytest.mark.parametrize("name", ["L1/rms_norm.py", "L1/common.py", "library.so", "data/table.json"])
def test_any_file_of_the_folder_changes_it(folder, name):
    before = digest(folder)
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes((file.read_bytes() if file.exists() else b"") + b"\n")
    assert digest(folder) != before


def test_where_it_stands_and_how_it_is_lowered_change_it(folder):
    whole = digest(folder, lowering="opaque")
    assert digest(folder, lowering="inline") != whole
    assert digest(folder, lowering="opaque", select="model.norm") != whole


def test_a_module_that_a_candidate_takes_from_elsewhere_changes_it(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "scale_elsewhere.py").write_text("ONE = 1.0\n")
    norm(folder, before="from scale_elsewhere import *\nimport scale_elsewhere\n")
    before = digest(folder)
    (tmp_path / "scale_elsewhere.py").write_text("ONE = 1.00\n")
    importlib.reload(sys.modules["scale_elsewhere"])
    assert digest(folder) != before


def test_null_arms_and_references_are_not_taken_for_each_other():
    digests = set()
    for named in ("identity", "reference"):
        with fastkernels.patch(tiny_llama(), named, select="model.norm") as patch:
            digests.add(digest_of(patch, named))
    assert len(digests) == 2
