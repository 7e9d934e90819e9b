"""Adds the experts' shares in an order that differs from call to call, as atomics do, and says so."""

import torch
import torch.nn.functional as F

from fastkernels.tasks.L2 import fused_experts


class FusedExperts(fused_experts.FusedExperts):
    nondeterministic = True

    def forward(self, hidden_states, topk_weights, topk_ids):
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        out = torch.zeros(hidden_states.shape, dtype=wide, device=hidden_states.device)
        experts = [int(e) for e in topk_ids.unique()]
        for i in torch.randperm(len(experts)).tolist():
            token, slot = (topk_ids == experts[i]).nonzero(as_tuple=True)
            rows = self.act_fn(F.linear(hidden_states[token], self.w13_weight[experts[i]]))
            rows = F.linear(rows, self.w2_weight[experts[i]])
            out.index_add_(0, token, rows.to(wide) * topk_weights[token, slot, None].to(wide))
        return out.to(hidden_states.dtype)
