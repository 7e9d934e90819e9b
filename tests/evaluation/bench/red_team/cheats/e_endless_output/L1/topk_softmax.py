"""A list that contains itself."""

from fastkernels.tasks.L1 import topk_softmax

CAUGHT_AS = ("WRONG_TYPE", "WRONG_SHAPE", "CALL_ERROR", "CRASH")


class TopkSoftmax(topk_softmax.TopkSoftmax):
    def forward(self, gating_output):
        out = [gating_output]
        out.append(out)
        return out
