"""Calibration, on whole models: the baseline itself scores 1, and known wrongs lie between the controls, in order."""

from __future__ import annotations

import copy

import pytest
import torch

from fastkernels.evaluation.e2e.calibration import judge
from fastkernels.evaluation.e2e.families.encoder import Embedding
from fastkernels.evaluation.e2e.perturb import CONTROL, int8_round_trip, perturb
from fastkernels.evaluation.e2e.prompts import packaged_texts
from tests.evaluation.e2e.tiny import TINY, minilm, tiny

CASES = {
    "embedding": (tiny(Embedding(), minilm), 8),
    "recommendation": (TINY["cross-encoder"], 16),
    "classification": (TINY["vit"], 32),
    "detection": (TINY["detr"], 1),
    "segmentation": (TINY["segformer"], 4),
    "audio": (TINY["speecht5"], 4),
    "latents": (TINY["swin2sr"], 4),
    "trajectory": (TINY["patchtst"], 16),
}


@pytest.mark.parametrize("category", CASES)
def test_int8_weights_and_a_perturbation_lie_between_the_controls_in_that_order(category, record_property):
    case, check_size = CASES[category]
    model = case.model()
    assert case.family.category == category

    def answer(subject=model):
        return case.session(subject, check_size=check_size, texts=packaged_texts()).answer()

    answers = {"oracle": answer(copy.deepcopy(model).double()), "baseline": answer(), "same": answer()}
    with perturb(model, CONTROL, seed=2):
        answers["control"] = answer()
    with int8_round_trip(model):
        answers["int8"] = answer()
    with perturb(model, 0.01, seed=3):
        answers["1%"] = answer()

    known = {name: answers[name] for name in ("oracle", "baseline", "control")}
    judged = {
        name: judge({**known, "candidate": answers[name]}, case.family, mode="eager", oracle="float64")
        for name in ("same", "int8", "1%", "control")
    }
    scores = {name: correctness.score for name, correctness in judged.items()}
    assert scores["same"] == 1.0 and scores["control"] == 0.0
    assert 1 > scores["int8"] > scores["1%"] > 0, scores
    assert judged["same"].metrics[0].score == 1.0, "the family's main metric tells right from wrong"
    assert torch.equal(answer()[case.family.timed[0]], answers["baseline"][case.family.timed[0]])
    record_property(category, scores)
