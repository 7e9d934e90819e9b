"""Its operator widens to float32, and returns the very input where that is float32 already."""

import torch

import fastkernels
from fastkernels.tasks.L1.softmax import Softmax

library = torch.library.Library("bad_al_input_output", "DEF")
library.define("widen(Tensor x) -> Tensor")
library.impl("widen", lambda x: x.float(), "CompositeExplicitAutograd")
torch.library.register_fake("bad_al_input_output::widen", lambda x: torch.empty_like(x, dtype=torch.float32))


@fastkernels.candidate("softmax")
class WideSoftmax(Softmax):
    def forward(self, x):
        wide = torch.ops.bad_al_input_output.widen(x)
        return torch.softmax(wide, self.dim).to(x.dtype)
