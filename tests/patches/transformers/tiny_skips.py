"""Why some transformers model types have no tiny model in these tests."""

from __future__ import annotations

SKIPS: dict[str, str] = {
    # packages which are no dependency of ours
    "dinat": "needs natten",
    "fast_vlm": "its vision tower needs timm",
    "gemma3n": "its vision tower needs timm and pillow",
    "gemma3n_vision": "needs timm and pillow",
    "higgs_audio_v2_tokenizer": "needs torchaudio",
    "layoutlmv2": "needs detectron2",
    "omdet-turbo": "its default backbone needs timm, and its class and task inputs come from a processor",
    "pe_audio_video": "its vision tower needs timm",
    "pe_audio_video_encoder": "its vision tower needs timm",
    "pe_video": "its vision tower needs timm before transformers 5.23",
    "pe_video_encoder": "its vision tower needs timm before transformers 5.23",
    "perception_lm": "its vision tower needs timm",
    "timm_backbone": "needs timm",
    "timm_wrapper": "needs timm and pillow",
    # the network
    "edgetam": "its default config is loaded from the hub",
    "edgetam_vision_model": "its default config is loaded from the hub",
    # no forward of the whole model
    "bark": "the model as a whole has no forward, only generate",
    "glm_image_vqmodel": "the model has no forward, only encode",
    "qwen2_5_omni": "the model as a whole has no forward, only generate",
    "qwen3_omni_moe": "the model as a whole has no forward, only generate",
    "voxtral_realtime_text": "the class its mapping names is not exported",
    # inputs which another program makes
    "edgetam_video": "takes a video inference session, no tensors",
    "sam2_video": "takes a video inference session, no tensors",
    "sam3_tracker_video": "takes a video inference session, no tensors",
    "sam3_video": "takes a video inference session, no tensors",
    "gemma4_assistant": "takes the key and value states of the model it assists",
    "gemma4_unified_assistant": "takes the key and value states of the model it assists",
    "muse_glimmer_assistant": "takes the hidden states of the model it assists",
    "pi0": "takes actions, robot state and image prompts laid out by its processor",
    "inkling2_vision": "takes pixels packed by its processor",
    "jev": "takes marks and question types which its processor makes",
    # configs which are not complete by default
    "pp_ocrv5_server_det": "its default config leaves out the block layout which the model needs",
    "pp_ocrv6_medium_det": "its default config leaves out the block layout which the model needs",
    "pp_ocrv6_small_det": "the channels in its default config do not fit its default backbone",
}
