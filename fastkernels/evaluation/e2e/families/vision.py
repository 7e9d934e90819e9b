"""Images to labels, boxes and masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastkernels.evaluation.e2e.families.batched import BatchedFamily, field
from fastkernels.evaluation.e2e.families.draws import Request, image_size, images
from fastkernels.evaluation.e2e.families.family import Distance, Tensors
from fastkernels.evaluation.e2e.families.metrics import disagreement, kl_divergence, relative_l2, top_k_overlap
from fastkernels.evaluation.e2e.workload import Workload


class Vision(BatchedFamily):
    """Models called with ``pixel_values``."""

    unit = "images"
    size: ClassVar[int]  # where the config gives none

    def default_workloads(self) -> Mapping[str, Workload]:
        batch = Workload(name=f"{self.names[0]}.batch", batch=8, requests=16)
        return {batch.name: batch}

    def draw(self, model: nn.Module, request: Request) -> dict[str, Tensor]:
        height, width = image_size(model.config, request.size, self.size)
        channels = getattr(model.config, "num_channels", 3)
        return {"pixel_values": images(request.rows, channels, height, width, request.seed)}


class Classification(Vision):
    """One label an image."""

    names = ("Classification",)
    category = "classification"
    timed = ("logits",)
    size = 224

    def read(self, model: nn.Module, inputs: Tensors, raw: Any) -> dict[str, Tensor]:
        return {"logits": field(raw, "logits", "logits_per_image")}

    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        logits, wanted = outputs["logits"], oracle["logits"]
        return {
            "logits KL": kl_divergence(logits, wanted),
            "top-1": disagreement(logits, wanted),
            "top-5": top_k_overlap(logits, wanted, k=5),
        }


class Detection(Vision):
    """Boxes with class scores, a set without order: each query of the oracle is compared with the nearest one."""

    names = ("Detection",)
    category = "detection"
    timed = ("boxes", "logits")
    kept_values = 1 << 30  # all: a sample of boxes cannot be matched
    size = 640

    def read(self, model: nn.Module, inputs: Tensors, raw: Any) -> dict[str, Tensor]:
        return {"boxes": field(raw, "pred_boxes"), "logits": field(raw, "logits")}

    def aligned(self, outputs: Tensors, oracle: Tensors) -> Tensors:
        apart = torch.cdist(outputs["boxes"].double(), oracle["boxes"].double(), p=1)
        apart += torch.cdist(outputs["logits"].double().sigmoid(), oracle["logits"].double().sigmoid(), p=1)
        best = apart.argmin(1).unsqueeze(-1)  # for each of the oracle's queries
        return {name: outputs[name].gather(1, best.expand_as(oracle[name])) for name in ("boxes", "logits")}

    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        # Shapes and infinities are found before the match, which would hide them.
        relative_l2(outputs["boxes"], oracle["boxes"]), relative_l2(outputs["logits"], oracle["logits"])
        found = self.aligned(outputs, oracle)
        return {
            "box relative l2": relative_l2(found["boxes"], oracle["boxes"]),
            "class logits relative l2": relative_l2(found["logits"], oracle["logits"]),
            "class": disagreement(found["logits"], oracle["logits"]),
        }


class Segmentation(Vision):
    """A label for each pixel."""

    names = ("Segmentation",)
    category = "segmentation"
    timed = ("logits",)
    size = 512

    def read(self, model: nn.Module, inputs: Tensors, raw: Any) -> dict[str, Tensor]:
        """Class maps (rows, classes, height, width); of mask classifiers, the masks weighted by their classes."""
        if hasattr(raw, "masks_queries_logits"):
            classes = raw.class_queries_logits.softmax(-1)[..., :-1]  # the last class is: none
            return {"logits": torch.einsum("bqc,bqhw->bchw", classes, raw.masks_queries_logits.sigmoid())}
        return {"logits": field(raw, "logits")}

    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        logits, wanted = outputs["logits"], oracle["logits"]
        return {
            "logits relative l2": relative_l2(logits, wanted),
            "pixel accuracy": disagreement(logits.movedim(1, -1), wanted.movedim(1, -1)),
            "mean IoU": mean_iou(logits.argmax(1), wanted.argmax(1)),
        }


def mean_iou(labels: Tensor, oracle: Tensor) -> Distance:
    """One minus the mean, over the oracle's classes, of intersection over union; shown as the mean.

    >>> mean_iou(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1])).shown
    0.5833333333333333
    """
    classes = int(max(labels.max(), oracle.max())) + 1
    table = torch.bincount(oracle.flatten() * classes + labels.flatten(), minlength=classes**2).view(classes, classes)
    both, there = table.diagonal().double(), table.sum(1).double()
    union = there + table.sum(0) - both
    shown = (both / union)[there > 0].mean().item()
    sizes = union[there > 0]
    # The mean of C shares of n_c pixels each varies as one share of this many.
    trials = int(len(sizes) ** 2 / (1 / sizes).sum())
    return Distance(value=1 - shown, shown=shown, trials=trials)
