"""The vLLM host: adapters that read its modules as tasks, one rank at a time.

Lower levels come first: an adapter may ask which sites stand inside its module."""

from fastkernels.patches.vllm.activation import activation
from fastkernels.patches.vllm.attention import attention
from fastkernels.patches.vllm.attention_block import served_attention
from fastkernels.patches.vllm.decoder_layer import served_layer
from fastkernels.patches.vllm.embedding import embedding
from fastkernels.patches.vllm.gated_mlp import gated_mlp
from fastkernels.patches.vllm.linear import linear
from fastkernels.patches.vllm.logits import logits
from fastkernels.patches.vllm.moe import fused_experts
from fastkernels.patches.vllm.moe_block import moe_block
from fastkernels.patches.vllm.norms import layer_norm, rms_norm
from fastkernels.patches.vllm.rope import rotary_emb

ADAPTERS = (
    rms_norm,
    layer_norm,
    activation,
    rotary_emb,
    linear,
    embedding,
    attention,
    gated_mlp,
    fused_experts,
    moe_block,
    served_attention,
    served_layer,
    logits,
)
