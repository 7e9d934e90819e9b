"""One worker's model: patched as asked, or the engine is stopped, or serves unpatched and says so. The model is a plain
one: what is special in an engine's model is for the engines' own tests."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from fastkernels.errors import ServingError
from fastkernels.patches.dispatch import dispatchers
from fastkernels.serving.capture import require_capturable
from fastkernels.serving.settings import Settings
from fastkernels.serving.worker import stand
from tests.serving.candidates import norm

NORMS = 5  # of the tiny Llama


def stood(model, settings, **more):
    told = {
        "engine": "vllm",
        "version": "0.30",
        "rank": 1,
        "world_size": 2,
        "compilation": "eager",
        "lowering": "opaque",
    }
    return stand(model, settings, **(told | more))


@pytest.fixture
def right(tmp_path):
    return norm(tmp_path / "right")


@pytest.fixture
def host(tmp_path):
    """Right, and reads a value on the way."""
    folder = norm(tmp_path / "host")
    file = folder / "L1" / "rms_norm.py"
    file.write_text(file.read_text().replace("wide = x.float()", "wide = x.float() + 0 * x.flatten()[0].item()"))
    return folder


def test_a_patched_worker_reports_sites_digest_and_calls(llama, ids, right, tmp_path):
    standing = stood(llama, Settings(candidates=str(right), report_dir=tmp_path / "reports"))
    with torch.no_grad():
        llama(ids)
    report = json.loads(standing.verbs()["fastkernels_report"]())
    assert (report["state"], report["dispatchers"], report["calls"]) == ("patched", NORMS, NORMS)
    assert (report["rank"], report["world_size"], len(report["digest"])) == (1, 2, 64)
    assert json.loads((tmp_path / "reports" / "vllm-target-rank1.json").read_text()) == report


def test_a_watched_worker_has_the_verbs_and_no_patch(llama):
    standing = stood(llama, Settings(watch=True))
    assert standing.report().state == "watching"
    assert standing.sites() == "[]"
    with pytest.raises(ServingError, match="nothing is patched here"):
        standing.start_window()


def test_a_window_proves_what_ran_between_two_calls(llama, ids, right):
    verbs = stood(llama, Settings(candidates=str(right))).verbs()
    verbs["fastkernels_start_window"]()
    with pytest.raises(ServingError, match="open already"):
        verbs["fastkernels_start_window"]()
    with torch.no_grad():
        llama(ids)
    window = json.loads(verbs["fastkernels_end_window"]())
    assert window["tasks"]["rms_norm"]["calls"] == NORMS
    with pytest.raises(ServingError, match="no window is open"):
        verbs["fastkernels_end_window"]()


BAD = {
    "no folder": (lambda folder: Settings(candidates=str(folder / "none")), "is not a folder"),
    "wrong": (lambda folder: Settings(candidates=str(norm(folder, factor=0.5))), "is off by"),
    "raises": (lambda folder: Settings(candidates=str(norm(folder, before="1 / 0\n"))), "ZeroDivisionError"),
    "no site": (
        lambda folder: Settings(candidates=str(norm(folder)), select=("none", "*:linear")),
        "FASTKERNELS_SELECT=none [*]:linear chooses none of the 5 sites of LlamaForCausalLM that these candidates are "
        "for, so no candidate applies. One of them is model.layers.0.input_layernorm:rms_norm",
    ),
    "no lock": (lambda folder: Settings(candidates=str(norm(folder)), lock=folder / "none"), "no lock can be read"),
    "no sites file": (
        lambda folder: Settings(candidates=str(norm(folder)), sites=folder / "none"),
        r"not a list of \[path, task\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_put_in_stops_the_engine_with_the_reason_and_the_way_out(case, llama, tmp_path):
    settings, said = BAD[case]
    with pytest.raises(ServingError, match=said) as error:
        stood(llama, settings(tmp_path / "candidates"))
    assert "vllm 0.30, rank 1 of 2" in str(error.value)
    assert "FASTKERNELS_ON_ERROR=serve would start it unpatched" in str(error.value)
    assert not list(dispatchers(llama))


@pytest.mark.parametrize("case", BAD)
def test_told_to_serve_it_serves_unpatched_and_says_so_as_an_error(case, llama, tmp_path, caplog):
    asked = BAD[case][0](tmp_path / "candidates")
    with caplog.at_level(logging.ERROR, "fastkernels"):
        standing = stood(llama, Settings.from_environment(asked.environment() | {"FASTKERNELS_ON_ERROR": "serve"}))
    report = standing.report()
    assert (report.state, report.dispatchers, report.digest) == ("unpatched", 0, "")
    assert any(r.levelno == logging.ERROR and report.reason in r.getMessage() for r in caplog.records)
    assert "fastkernels_patched{engine=vllm,rank=1,model=target} 0" in caplog.messages
    assert not list(dispatchers(llama))


def test_any_error_of_foreign_code_is_served_unpatched_where_that_was_asked(llama, right):
    def broken(handle):
        raise AttributeError("an engine's module is not what it was")

    settings = Settings(candidates=str(right), on_error="serve")
    report = stood(llama, settings, check=broken).report()
    assert (report.state, report.dispatchers) == ("unpatched", 0)
    assert "AttributeError: an engine's module" in report.reason


def test_a_candidate_that_works_on_the_host_is_refused_where_graphs_are_captured(llama, host):
    def check(handle):
        require_capturable(handle, "enforce_eager=True")

    with pytest.raises(ServingError, match=r"works on the host \(Tensor.item") as error:
        stood(llama, Settings(candidates=str(host)), check=check)
    assert "RMSNorm for rms_norm" in str(error.value)
    assert "enforce_eager=True" in str(error.value)
    assert not list(dispatchers(llama))


def test_the_same_candidate_stands_where_nothing_is_captured(llama, host):
    assert stood(llama, Settings(candidates=str(host))).report().state == "patched"


def test_a_draft_on_which_nothing_applies_is_served_unpatched(llama, right):
    draft = torch.nn.Linear(4, 4)
    report = stood(draft, Settings(candidates=str(right)), name="draft", optional=True).report()
    assert (report.state, report.reason) == ("unpatched", "no candidate applies to the draft model")


def test_a_wrong_candidate_on_a_draft_stops_the_engine(llama, tmp_path):
    with pytest.raises(ServingError, match=r"draft model: .*is off by"):
        stood(llama, Settings(candidates=str(norm(tmp_path, factor=0.5))), name="draft", optional=True)


def test_modules_that_a_draft_shares_with_its_target_are_patched_once(llama, right):
    class Draft(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = llama.model.norm
            self.own = type(self.shared)(64)

    draft = Draft()
    stood(llama, Settings(candidates=str(right)))
    standing = stood(draft, Settings(candidates=str(right)), name="draft", optional=True, beside=llama)
    assert json.loads(standing.sites()) == [["own", "rms_norm"]]
