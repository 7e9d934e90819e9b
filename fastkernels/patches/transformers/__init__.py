"""The transformers host: adapters that read its modules (and torch.nn's) as tasks.

Lower levels come first: an adapter may ask which sites stand inside its module."""

from fastkernels.patches.transformers.activation import activation
from fastkernels.patches.transformers.attention import attention_block
from fastkernels.patches.transformers.causal_lm import causal_lm
from fastkernels.patches.transformers.decoder_layer import decoder_layer
from fastkernels.patches.transformers.embedding import embedding
from fastkernels.patches.transformers.encoder_attention import encoder_attention
from fastkernels.patches.transformers.encoder_layer import encoder_layer
from fastkernels.patches.transformers.encoder_model import encoder_model
from fastkernels.patches.transformers.gated_mlp import gated_mlp
from fastkernels.patches.transformers.linear import linear
from fastkernels.patches.transformers.mlp import mlp
from fastkernels.patches.transformers.moe import fused_experts, moe_block
from fastkernels.patches.transformers.moe_router import moe_router
from fastkernels.patches.transformers.norms import layer_norm, rms_norm

ADAPTERS = (
    rms_norm,
    layer_norm,
    linear,
    embedding,
    activation,
    mlp,
    gated_mlp,
    moe_router,
    fused_experts,
    moe_block,
    attention_block,
    encoder_attention,
    encoder_layer,
    decoder_layer,
    encoder_model,
    causal_lm,
)
