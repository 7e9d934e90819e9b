"""Phases: right, or said to be unknown."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.phase import drafted_by, phase_of, require_whole_steps, sglang_phase


@pytest.mark.parametrize(
    ("lengths", "drafted", "phase"),
    [
        ([1, 1], 0, "decode"),
        ([9, 1], 0, "mixed"),
        ([9, 4], 0, "prefill"),
        ([1, 1], 3, "decode"),
        ([4, 4], 3, "unknown"),  # drafts verified, or prompts of four tokens
        ([9, 4], 3, "unknown"),
        ([9, 5], 3, "prefill"),
    ],
)
def test_queries_as_long_as_a_draft_are_of_no_known_phase(lengths, drafted, phase):
    assert phase_of(max(lengths), torch.tensor(lengths), drafted) == phase


def test_drafted_tokens_are_those_of_the_configuration():
    config = SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=3))
    assert drafted_by(config) == 3
    assert drafted_by(SimpleNamespace(speculative_config=None)) == drafted_by(None) == 0


def test_micro_batches_are_refused():
    with pytest.raises(EvaluationError, match="--enable-dbo"):
        require_whole_steps(SimpleNamespace(parallel_config=SimpleNamespace(use_ubatching=True)))
    require_whole_steps(SimpleNamespace(parallel_config=SimpleNamespace(use_ubatching=False, enable_dbo=False)))


class Mode:
    def __init__(self, name):
        self.name = name

    def __getattr__(self, question):
        return lambda: question == f"is_{self.name}"


@pytest.mark.parametrize(
    ("mode", "phase"),
    [
        ("decode", "decode"),
        ("mixed", "mixed"),
        ("idle", None),
        ("extend", "prefill"),
        ("target_verify", "unknown"),
        ("draft_extend_v2", "unknown"),
    ],
)
def test_sglangs_verified_drafts_are_no_prefill(mode, phase):
    assert sglang_phase({"forward_batch": SimpleNamespace(forward_mode=Mode(mode))}) == phase
