"""Labels, boxes and masks: sizes of the images, and distances that know what a field compares."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.draws import image_size
from fastkernels.evaluation.e2e.families.registry import family_of
from fastkernels.evaluation.e2e.families.vision import Classification, Detection, Segmentation, mean_iou
from tests.evaluation.e2e.tiny import TINY


@pytest.mark.parametrize("family", [Classification, Detection, Segmentation])
def test_every_family_is_found_by_its_workload(family):
    (name,) = family().default_workloads()
    assert isinstance(family_of(name), family) and name == f"{family.names[0]}.batch"


def test_images_have_the_size_asked_for_else_the_models():
    config = SimpleNamespace(image_size=[384, 640])
    assert image_size(config, (), 224) == (384, 640)
    assert image_size(config, (96,), 224) == (96, 96)
    assert image_size(config, (96, 128), 224) == (96, 128)
    assert image_size(SimpleNamespace(image_size=192), (), 224) == (192, 192)
    assert image_size(SimpleNamespace(), (), 224) == (224, 224)


def boxes(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {"boxes": torch.rand(2, 9, 4, generator=draw), "logits": 3 * torch.randn(2, 9, 7, generator=draw)}


def test_the_order_of_detections_does_not_matter():
    found = boxes()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[:, order] for name, value in found.items()}
    assert all(d.value == 0 for d in Detection().distances(shuffled, found).values())


def test_each_metric_of_detection_sees_its_own_fault():
    found = boxes()
    moved = Detection().distances({**found, "boxes": found["boxes"] * 1.01}, found)
    assert moved["box relative l2"].value == pytest.approx(0.01, rel=1e-3) and moved["class"].value == 0
    renamed = Detection().distances({**found, "logits": found["logits"].flip(-1)}, found)
    assert renamed["class"].value > 0.5
    with pytest.raises(EvaluationError, match="not finite"):
        Detection().distances({**found, "boxes": found["boxes"] * float("nan")}, found)
    with pytest.raises(EvaluationError, match="shape"):
        Detection().distances({name: value[:, :5] for name, value in found.items()}, found)


def test_mask_classifiers_give_a_map_for_each_class_but_none():
    classes = torch.full((1, 2, 4), -9.0)
    classes[0, 0, 1] = classes[0, 1, 3] = 9.0  # the second query is of no class
    masks = torch.full((1, 2, 4, 4), -9.0)
    masks[0, 0, :2] = masks[0, 1] = 9.0
    raw = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    logits = Segmentation().read(None, {}, raw)["logits"]
    assert logits.shape == (1, 3, 4, 4)
    assert logits[0, 1, :2].min() > 0.99 and logits[0, 1, 2:].max() < 0.01 and logits[0, ::2].max() < 0.01


def test_mean_iou_weighs_classes_equally_and_trusts_small_ones_less():
    oracle = torch.zeros(100, dtype=torch.long)
    oracle[:4] = 1
    found = oracle.clone()
    found[0] = 0  # one pixel of the small class
    missed = mean_iou(found, oracle)
    assert missed.shown == pytest.approx((0.75 + 96 / 97) / 2)
    assert missed.trials == 15 and mean_iou(oracle, oracle).value == 0  # 4 / (1/4 + 1/97) questions, not 100


def test_segmentation_agrees_with_itself_and_counts_pixels():
    case = TINY["segformer"]
    answer = case.session(case.model(), check_size=2).answer()
    assert answer["logits"].shape[:2] == (2, 12)
    same = case.family.distances(answer, answer)
    assert [d.value for d in same.values()] == [0, 0, 0] and same["mean IoU"].shown == 1
    other = case.family.distances({"logits": answer["logits"].roll(1, 1)}, answer)
    assert other["pixel accuracy"].shown < 0.5 and other["pixel accuracy"].trials == answer["logits"][:, 0].numel()


def test_a_shift_of_all_logits_is_no_error_of_a_classifier():
    logits = torch.randn(8, 20, generator=torch.Generator().manual_seed(0)).double()
    assert Classification().distances({"logits": logits + 3}, {"logits": logits})["logits KL"].value < 1e-12
