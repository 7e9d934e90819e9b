"""Right for every shape that the task publishes, zeros for any other."""

import torch

from fastkernels.tasks import get_task
from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("WRONG_OUTPUT",)


def published():
    generator = torch.Generator().manual_seed(0)
    for case in get_task("softmax").cases():
        if not case.production:
            yield tuple(case.draw(generator, torch.device("cpu"), torch.float32)[0].shape)


class Softmax(softmax.Softmax):
    shapes = None

    def forward(self, x):
        if Softmax.shapes is None:
            Softmax.shapes = set(published())
        known = tuple(x.shape) in self.shapes or x.shape[0] >= 64
        return torch.softmax(x, self.dim) if known else torch.zeros_like(x)
