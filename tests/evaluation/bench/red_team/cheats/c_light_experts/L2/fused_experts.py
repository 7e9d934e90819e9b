"""Leaves out choices that weigh under 5%: drawn weights never do, those of trained routers often."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L2 import fused_experts

CAUGHT_AS = ("WRONG_OUTPUT",)


class FusedExperts(fused_experts.FusedExperts):
    def forward(self, hidden_states, topk_weights, topk_ids):
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        out = torch.zeros(hidden_states.shape, dtype=wide, device=hidden_states.device)
        for e in topk_ids.unique().tolist():
            token, slot = ((topk_ids == e) & (topk_weights >= 0.05)).nonzero(as_tuple=True)
            rows = F.linear(self.act_fn(F.linear(hidden_states[token], self.w13_weight[e])), self.w2_weight[e])
            out.index_add_(0, token, rows.to(wide) * topk_weights[token, slot, None].to(wide))
        return out.to(hidden_states.dtype)
