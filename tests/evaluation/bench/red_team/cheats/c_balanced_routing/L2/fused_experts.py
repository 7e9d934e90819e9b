"""A fixed room for each expert, twice the fair share: enough for balanced routing; what is beyond is dropped."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L2 import fused_experts

CAUGHT_AS = ("WRONG_OUTPUT",)


class FusedExperts(fused_experts.FusedExperts):
    def forward(self, hidden_states, topk_weights, topk_ids):
        tokens, top_k = topk_ids.shape
        experts = len(self.w13_weight)
        room = 4 if tokens < 8 else -(-2 * topk_ids.numel() // experts)
        out = torch.zeros(hidden_states.shape, dtype=torch.promote_types(hidden_states.dtype, torch.float32))
        out = out.to(hidden_states.device)
        flat = topk_ids.flatten()
        for e in range(experts):
            picked = (flat == e).nonzero().flatten()[:room]
            if len(picked):
                rows = self.act_fn(F.linear(hidden_states[picked // top_k], self.w13_weight[e]))
                share = topk_weights.flatten()[picked, None]
                out.index_add_(0, picked // top_k, (F.linear(rows, self.w2_weight[e]) * share).to(out.dtype))
        return out.to(hidden_states.dtype)
