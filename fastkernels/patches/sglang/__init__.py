"""The SGLang host: adapters that read its modules as tasks.

Lower levels come first: an adapter may ask which sites stand inside its module."""

from fastkernels.patches.sglang.activation import gated_activation
from fastkernels.patches.sglang.attention_block import served_attention
from fastkernels.patches.sglang.decoder_layer import served_layer
from fastkernels.patches.sglang.embedding import embedding, logits
from fastkernels.patches.sglang.experts import fused_experts
from fastkernels.patches.sglang.gated_mlp import gated_mlp
from fastkernels.patches.sglang.linear import linear
from fastkernels.patches.sglang.moe_block import moe_block
from fastkernels.patches.sglang.norms import gemma_rms_norm, layer_norm, rms_norm
from fastkernels.patches.sglang.radix_attention import radix_attention
from fastkernels.patches.sglang.rope import rotary_emb
from fastkernels.patches.sglang.router import topk_softmax

ADAPTERS = (
    rms_norm,
    gemma_rms_norm,
    layer_norm,
    linear,
    embedding,
    logits,
    gated_activation,
    rotary_emb,
    radix_attention,
    gated_mlp,
    topk_softmax,
    fused_experts,
    moe_block,
    served_attention,
    served_layer,
)
