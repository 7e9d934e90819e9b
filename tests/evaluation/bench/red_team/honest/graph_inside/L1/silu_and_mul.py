"""A CUDA graph of its own for each shape: copies in, replays, copies out."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L1 import silu_and_mul

GPU = True


class SiluAndMul(silu_and_mul.SiluAndMul):
    def __init__(self):
        super().__init__()
        self.graphs = {}

    def forward(self, x):
        if x.numel() == 0 or torch.cuda.is_current_stream_capturing():
            gate, up = x.chunk(2, dim=-1)
            return F.silu(gate) * up
        key = (x.shape, x.stride(), x.dtype)
        if key not in self.graphs:
            static = x.clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                F.silu(static.chunk(2, dim=-1)[0])
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                gate, up = static.chunk(2, dim=-1)
                out = F.silu(gate) * up
            self.graphs[key] = (graph, static, out)
        graph, static, out = self.graphs[key]
        static.copy_(x)
        graph.replay()
        return out.clone()
