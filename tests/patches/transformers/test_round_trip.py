"""Every model type that transformers can build tiny on the CPU: patched with references, then taken back, exactly."""

from __future__ import annotations

import pytest
import torch

import fastkernels
from fastkernels.patches.dispatch import dispatchers
from fastkernels.tasks.accuracy import measure
from tests.patches.test_contract import assert_same_dicts, snapshot
from tests.patches.transformers.tiny import MODEL_TYPES, build
from tests.patches.transformers.tiny_skips import SKIPS

# Whole models: a discrete choice (top-k experts, codebooks) may flip on 1e-7 of noise, which then shows in full.
TOLERANCE = 1e-4


def far(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    assert len(got) == len(want)
    return max((measure(g, w).l2 for g, w in zip(got, want, strict=True)), default=0.0)


@pytest.mark.parametrize("model_type", [t for t in MODEL_TYPES if t not in SKIPS])
def test_references_agree_and_unpatch_restores_everything(model_type):
    tiny, bystander = build(model_type), build(model_type)
    model = tiny.model
    want = tiny.run()
    before, values = snapshot(model), {k: v.clone() for k, v in model.state_dict().items()}
    for select in ("all", lambda site: site.task.level <= 2):
        with fastkernels.patch(model, "reference", select=select, on_miss="report") as p:
            got = tiny.run()
            assert far(got, want) <= TOLERANCE, p.report.count()
            assert bool(p.report.applied) == (sum(d.calls for d in p.dispatchers.values()) > 0)
            assert not list(dispatchers(bystander.model))
        assert far(tiny.run(), want) == 0.0  # some modules keep the state of their last run: it is this one's now
        assert_same_dicts(before, snapshot(model))
        assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
    assert far(bystander.run(), want) == 0.0


def test_every_skip_has_a_reason_and_most_types_are_covered():
    assert all(reason.strip() for reason in SKIPS.values())
    covered = [t for t in MODEL_TYPES if t not in SKIPS]
    assert len(covered) >= 0.8 * len(MODEL_TYPES), (len(covered), len(MODEL_TYPES))
