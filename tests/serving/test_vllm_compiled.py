"""vLLM's piecewise compilation over one warm cache: each start runs its own code, and a receipt proves it.

vLLM keys its cache by its configuration, which knows nothing of patches: without our digest in it, the second start
loads the first one's graphs, and a wrong candidate passes for a right one."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from tests.engines.tiny import make
from tests.serving.candidates import norm
from tests.serving.vllm_driver import IN_PROCESS, run

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # five starts, each with a compilation or what is left of one
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not in this environment"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler"),
]

LOADED = "Directly load AOT compilation"
PATCHED_STEPS = ("ask:start_window", "generate", "ask:end_window", "ask:report")


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """Unpatched, patched, patched again, with an edited (wrong) candidate, and unpatched again."""
    folder = tmp_path_factory.mktemp("compiled")
    model = make(folder / "models", "llama", layers=1)
    mine = norm(folder / "mine")
    patched = {"FASTKERNELS_CANDIDATES": str(mine)}

    def start(*steps, variables):
        ran = run(
            *steps,
            model=model,
            cache=folder / "cache",
            variables=IN_PROCESS | variables,
            piecewise=True,
            enforce_eager=False,
        )
        assert ran.code == 0, ran.log
        return ran

    done = {"unpatched": start("generate", f"patch:{mine}", variables={})}
    done["patched"] = start(*PATCHED_STEPS, variables=patched)
    done["patched again"] = start(*PATCHED_STEPS, variables=patched)
    norm(mine, factor=0.5)
    done["edited"] = start(*PATCHED_STEPS, variables=patched | {"FASTKERNELS_VERIFY": "0"})
    done["unpatched again"] = start("generate", variables={})
    return done


def tokens(ran):
    return ran.results["generate"]


def operators(ran):
    (window,) = ran.results["ask:end_window"]
    return window["tasks"]["rms_norm"]["ops"]


def test_each_start_runs_its_own_code(starts):
    right = tokens(starts["unpatched"])
    assert [tokens(starts[name]) == right for name in starts] == [True, True, True, False, True]


def test_the_same_patch_finds_its_graphs_and_another_finds_none(starts):
    assert [LOADED in starts[name].log for name in starts] == [False, False, True, False, True]


@pytest.mark.parametrize("name", ["patched", "patched again", "edited"])
def test_the_candidate_is_in_the_graphs_that_run(starts, name):
    (report,) = starts[name].results["ask:report"]
    assert "VLLM_COMPILE" in report["compilation"]
    norms = [site for site in report["patch"]["sites"] if site["task"] == "rms_norm"]
    assert {(site["state"], site["lowering"]) for site in norms} == {("applied", "opaque")}
    assert report["calls"] == 0  # no Python of ours runs in a compiled step: the operators are the receipt
    assert sum(operators(starts[name]).values()) >= 12 * 3  # steps, norms


def test_an_edited_candidate_is_another_operator(starts):
    assert operators(starts["patched"]).keys() == operators(starts["patched again"]).keys()
    assert not operators(starts["patched"]).keys() & operators(starts["edited"]).keys()


def test_a_live_patch_of_a_compiled_engine_is_refused_with_the_ways_out(starts):
    (refusal,) = (v["error"] for k, v in starts["unpatched"].results.items() if k.startswith("patch:"))
    assert "compiled or captured already (compilation VLLM_COMPILE" in refusal
    assert "enforce_eager=True" in refusal
    assert "FASTKERNELS_CANDIDATES" in refusal
