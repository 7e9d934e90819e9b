"""Wrong candidates: each is named with the site, the rule it breaks and the way out, and nothing is half-patched."""

from __future__ import annotations

import pytest
import torch

import fastkernels
from fastkernels import CandidateError, PatchError
from fastkernels.patches.dispatch import dispatchers
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L2.gated_mlp import LlamaMLP
from tests.patches.test_contract import assert_same_dicts, logits, snapshot


class FivePercentOff(RMSNorm):
    def forward(self, x, residual=None):
        return super().forward(x) * 1.05


def test_a_candidate_five_percent_off_is_refused_with_site_error_and_tolerance(llama, ids):
    before = snapshot(llama)
    with pytest.raises(PatchError) as refusal:
        fastkernels.patch(llama, {"rms_norm": FivePercentOff})
    message = str(refusal.value)
    assert "model.norm (LlamaRMSNorm)" in message and "FivePercentOff" in message
    assert "off by l2 5.00e-02" in message and "tolerance is l2" in message and "Nothing was patched" in message
    assert_same_dicts(before, snapshot(llama))


def test_without_verification_it_runs_and_the_outputs_show_it(llama, ids):
    want = logits(llama, ids)
    with fastkernels.patch(llama, {"rms_norm": FivePercentOff}, verify=False) as p:
        got = logits(llama, ids)
        assert all(s.calls == 1 for s in p.report.applied)
    assert not torch.allclose(got, want, rtol=1e-2)
    assert torch.equal(logits(llama, ids), want)


def test_one_wrong_element_in_a_hundred_is_refused(llama):
    class MostlyRight(RMSNorm):
        def forward(self, x, residual=None):
            out = super().forward(x)
            out[..., 0] *= 1.5
            return out

    with pytest.raises(PatchError, match="peak"):
        fastkernels.patch(llama, {"rms_norm": MostlyRight})


def test_reported_instead_of_raised_the_other_candidates_still_apply(llama, ids):
    want = logits(llama, ids)
    with fastkernels.patch(llama, {"rms_norm": FivePercentOff, "gated_mlp": LlamaMLP}, on_miss="report") as p:
        states = {c.task: c.state for c in p.report.candidates}
        assert states == {"rms_norm": "refused", "gated_mlp": "applied"}
        assert {s.state for s in p.report.sites if s.task == "rms_norm"} == {"refused"}
        torch.testing.assert_close(logits(llama, ids), want, rtol=1e-4, atol=1e-5)


def test_a_wrong_dtype_is_refused_with_both_dtypes_and_the_way_out(llama):
    class Float64(LlamaMLP):
        def forward(self, x):
            return super().forward(x).double()

    with pytest.raises(CandidateError) as error:
        fastkernels.patch(llama, {"gated_mlp": Float64})
    assert "model.layers.1.mlp (LlamaMLP)" in str(error.value)
    assert "(2, 5, 64) float64" in str(error.value) and "(2, 5, 64) float32" in str(error.value)
    assert not list(dispatchers(llama))


def test_a_wrong_shape_is_refused(llama):
    class Short(LlamaMLP):
        def forward(self, x):
            return super().forward(x)[..., :-1]

    with pytest.raises(CandidateError, match=r"\(2, 5, 63\) float32, the task gated_mlp says \(2, 5, 64\) float32"):
        fastkernels.patch(llama, {"gated_mlp": Short})


def test_a_forward_that_cannot_take_the_arguments_is_refused_before_anything_runs(llama):
    class NoInput(RMSNorm):
        def forward(self):
            return None

    with pytest.raises(CandidateError, match=r"does not take the arguments of rms_norm, RMSNorm.forward\(x, residual"):
        fastkernels.patch(llama, {"rms_norm": NoInput})


def test_a_candidate_that_raises_is_named_with_site_and_task(llama):
    class Raises(RMSNorm):
        def forward(self, x, residual=None):
            raise RuntimeError("no such kernel image")

    with pytest.raises(CandidateError, match=r"model\.norm \(LlamaRMSNorm\): candidate .*Raises raised RuntimeError"):
        fastkernels.patch(llama, {"rms_norm": Raises})


def test_other_state_names_are_refused_with_those_wanted(llama):
    class Renamed(torch.nn.Module):
        def __init__(self, hidden_size, eps=1e-6):
            super().__init__()
            self.gamma = torch.nn.Parameter(torch.ones(hidden_size))

        def forward(self, x, residual=None):
            return x * self.gamma

    with pytest.raises(CandidateError, match=r"has weight of shape \(64,\); Renamed has \{'gamma'"):
        fastkernels.patch(llama, {"rms_norm": Renamed})


def test_mutating_the_input_is_refused(llama):
    class InPlace(RMSNorm):
        def forward(self, x, residual=None):
            out = super().forward(x)
            x.zero_()
            return out

    with pytest.raises(CandidateError, match=r"model\.norm.*changed its argument x in place"):
        fastkernels.patch(llama, {"rms_norm": InPlace})


def test_nothing_applied_is_an_error_that_says_why(llama):
    from fastkernels.tasks.L1.layer_norm import LayerNorm

    with pytest.raises(PatchError, match="no candidate applies") as error:
        fastkernels.patch(llama, {"layer_norm": LayerNorm})
    assert "unmatched" in str(error.value)
    with fastkernels.patch(llama, {"layer_norm": LayerNorm}, on_miss="report") as p:
        assert [c.state for c in p.report.candidates] == ["unmatched"]


def test_what_is_no_module_cannot_be_planned_and_the_way_out_is_told():
    with pytest.raises(PatchError, match=r"a live nn.Module is wanted, not builtins.object.*/fastkernels/report"):
        fastkernels.plan(object())


def test_a_model_without_values_is_refused_and_can_be_planned(llama):
    llama.to("meta")
    with pytest.raises(PatchError, match="meta device"):
        fastkernels.patch(llama, "reference")
    report = fastkernels.plan(llama, "reference")
    assert report.dry_run and {"rms_norm", "gated_mlp", "attention_block"} <= {s.task for s in report.sites}


def test_bad_options_are_named():
    layer = torch.nn.LayerNorm(8)
    with pytest.raises(PatchError, match="mode"):
        fastkernels.patch(layer, "reference", mode="fast")
    with pytest.raises(PatchError, match="on_miss"):
        fastkernels.patch(layer, "reference", on_miss="ignore")
    with pytest.raises(PatchError, match="select"):
        fastkernels.patch(layer, "reference", select=[1])
    with pytest.raises(CandidateError, match="no task is called"):
        fastkernels.patch(layer, {"rmsnorm": RMSNorm})


def test_a_module_that_only_looks_right_is_reported_as_unrecognised(llama):
    class Twice(type(llama.model.norm)):
        def forward(self, hidden_states):
            return super().forward(hidden_states) * 2

    twice = Twice(64)
    llama.model.norm = twice
    with fastkernels.patch(llama, {"rms_norm": RMSNorm}) as p:
        (missed,) = p.report.unrecognised
        assert missed.path == "model.norm" and "probe mismatch" in missed.reason
        assert "forward" not in vars(twice)
