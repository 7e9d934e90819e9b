"""The transformers host: adapters that read its modules (and torch.nn's) as tasks.

Lower levels come first: an adapter may ask which sites stand inside its module."""

from fastkernels.patches.transformers.attention import attention_block
from fastkernels.patches.transformers.decoder_layer import decoder_layer
from fastkernels.patches.transformers.gated_mlp import gated_mlp
from fastkernels.patches.transformers.linear import linear
from fastkernels.patches.transformers.norms import layer_norm, rms_norm

ADAPTERS = (rms_norm, layer_norm, linear, gated_mlp, attention_block, decoder_layer)
