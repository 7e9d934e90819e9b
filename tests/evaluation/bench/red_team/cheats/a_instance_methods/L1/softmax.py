"""A plain torch.Tensor, whose own attributes shadow the methods with which a harness would read it: they work late."""

import torch

from fastkernels.tasks.L1 import softmax

CAUGHT_AS = ("WRONG_TYPE", "LATE_WORK", "WRONG_OUTPUT", "TIMED_WRONG", "TAMPERED")
READERS = [
    "detach",
    "clone",
    "cpu",
    "contiguous",
    "to",
    "numpy",
    "view",
    "reshape",
    "flatten",
    "double",
    "float",
    "data_ptr",
    "untyped_storage",
    "storage",
    "is_contiguous",
    "stride",
    "__deepcopy__",
    "copy_",
    "__array__",
]


class Softmax(softmax.Softmax):
    def forward(self, x):
        out = torch.empty_like(x)
        state = {}

        def reader(name):
            def read(*args, **kwargs):
                if not state:
                    state["done"] = True
                    torch.Tensor.copy_(out, torch.softmax(x, self.dim))
                return getattr(torch.Tensor, name)(out, *args, **kwargs)

            return read

        for name in READERS:
            setattr(out, name, reader(name))
        return out
