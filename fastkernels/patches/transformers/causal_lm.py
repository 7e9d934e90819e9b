"""Causal language models: ids in, logits out, the whole model as one site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from fastkernels.patches.fingerprint import argument_names, evidence
from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Draws, Forward, Proposal, Scenario
from fastkernels.patches.source import Param, Source, join
from fastkernels.patches.transformers.attention import watched_config
from fastkernels.patches.transformers.causal_lm_call import (
    ARGUMENTS,
    MASK_SWITCHES,
    RECORDED,
    enter_for,
    leave_for,
    output_of,
)
from fastkernels.patches.transformers.language_model import NORMS, PROBED_LAYERS, LanguageModel, read, smaller
from fastkernels.patches.transformers.recorders import is_idle

KNOWN = (
    "transformers.models.llama.modeling_llama:LlamaForCausalLM",
    "transformers.models.gemma2.modeling_gemma2:Gemma2ForCausalLM",
    "transformers.models.cohere.modeling_cohere:CohereForCausalLM",
)


def causal_lm(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Models of a base and a head whose layers are all sites of task ``decoder_layer``."""
    names = argument_names(type(module))
    output = output_of(type(module))
    if output is None or names[:1] != ("input_ids",) or not set(names) >= ARGUMENTS:
        return
    model = read(module, host)
    if model is None or not scale_as_said(module.get_submodule(model.embedding)):
        return
    if len({p.device for p in module.parameters()}) != 1:
        return
    if model.kinds.index(max(model.kinds)) >= PROBED_LAYERS:  # too deep for a probe that sees every kind
        return
    yield Proposal(
        task="causal_lm",
        facts=facts_of(module, model, host),
        state=state_of(module, model, host),
        enter=enter_for(module, names, model, host),
        leave=leave_for(module, output),
        scenarios=scenarios_for(module, model),
        evidence=evidence(type(module), KNOWN),
        inner=(model.base, model.head),
        parts=parts_of(module, model, host),
        watches=watches_of(module, model),
        stand_in=partial(smaller, model=model),
        idle=is_idle,
        drops=True,
    )


def facts_of(module: nn.Module, model: LanguageModel, host: Host) -> dict[str, Any]:
    """Constructor facts of the interface; scales and caps where the models that have them keep them."""
    config, embedding = module.config, module.get_submodule(model.embedding)
    norm = host.site(module.get_submodule(model.norm), *NORMS)
    head = host.site(module.get_submodule(model.head), "linear")
    assert norm is not None and head is not None
    own_scale = vars(embedding).get("scalar_embed_scale")
    divisor = getattr(config, "logits_scaling", None)
    return {
        "vocab_size": embedding.weight.shape[0],
        "layers": model.facts,
        "kinds": model.kinds,
        "norm": dict(norm.proposal.facts),
        "norm_task": norm.task.name,
        "embed_scale": vars(module.get_submodule(model.base)).get("embedding_multiplier", own_scale),
        "embed_scale_rounded": own_scale is not None,
        "logits_scale": vars(module).get("logit_scale", None if divisor is None else 1.0 / divisor),
        "logits_soft_cap": getattr(config, "final_logit_softcapping", None),
        "head_bias": head.proposal.facts["bias"],
    }


def state_of(module: nn.Module, model: LanguageModel, host: Host) -> dict[str, Source]:
    """The interface's state, each part's under the part's name in the model."""
    state: dict[str, Source] = {}
    places = [("model.embed_tokens", model.embedding), ("model.norm", model.norm), ("lm_head", model.head)]
    places += [(f"model.layers.{i}", join(model.layers, str(i))) for i in range(len(model.kinds))]
    for image, name in places:
        site = host.site(module.get_submodule(name), "embedding", "linear", "decoder_layer", *NORMS)
        if site is None:  # an embedding with a scale of its own
            state[f"{image}.weight"] = Param(f"{name}.weight")
        else:
            state |= {f"{image}.{key}": source.under(name) for key, source in site.proposal.state.items()}
    return state


def scale_as_said(embedding: nn.Module) -> bool:
    """An embedding that multiplies by a buffer does so by the number that it keeps beside it."""
    buffer, number = embedding._buffers.get("embed_scale"), vars(embedding).get("scalar_embed_scale")
    if buffer is None or buffer.is_meta:
        return True
    return (
        number is not None and buffer.numel() == 1 and buffer.item() == torch.tensor(number, dtype=buffer.dtype).item()
    )


def parts_of(module: nn.Module, model: LanguageModel, host: Host) -> dict[str, str]:
    """Where each part of the interface lies in the model, the layers' own parts included."""
    parts = {"model.embed_tokens": model.embedding, "model.norm": model.norm, "lm_head": model.head}
    for i in range(len(model.kinds)):
        name, image = join(model.layers, str(i)), f"model.layers.{i}"
        site = host.site(module.get_submodule(name), "decoder_layer")
        assert site is not None
        parts |= {image: name} | {f"{image}.{k}": join(name, v) for k, v in site.proposal.parts.items()}
    return parts


def watches_of(module: nn.Module, model: LanguageModel) -> tuple[tuple[Any, str], ...]:
    """Attributes that the facts, masks and outputs were read from."""
    base, embedding = module.get_submodule(model.base), module.get_submodule(model.embedding)
    config = module.config
    wanted: list[tuple[Any, str]] = [
        (module, "logit_scale"),
        (base, "embedding_multiplier"),
        (embedding, "scalar_embed_scale"),
    ]
    wanted += [(module, "config"), (base, "config")]
    wanted += [(config, n) for n in ("logits_scaling", "final_logit_softcapping", "num_hidden_layers")]
    wanted += [(config, n) for n in ("sliding_window", "layer_types", *MASK_SWITCHES, *RECORDED)]
    return (*watched_config(base), *wanted)  # also what is absent now: it may come


def scenarios_for(module: nn.Module, model: LanguageModel) -> Callable[[Draws], Iterator[Scenario]]:
    """Prefill; prefill with padding on the left, compared where there is none; prefill then decode with a cache."""
    rows = module.get_submodule(model.embedding).weight.shape[0]

    def scenarios(draw: Draws) -> Iterator[Scenario]:
        ids = draw.integers(2, 20, high=rows, salt=1)
        yield lambda forward: [logits(forward(input_ids=ids, use_cache=False))]
        padding = torch.ones(2, 20, dtype=torch.long, device=draw.device)
        padding[0, :3] = 0
        positions = (padding.cumsum(-1) - 1).clamp_min(0)

        def padded(forward: Forward) -> list[torch.Tensor]:
            call = {"attention_mask": padding, "position_ids": positions, "use_cache": False}
            return [logits(forward(input_ids=ids, **call))[padding.bool()]]

        yield padded

        def decode(forward: Forward) -> list[torch.Tensor]:
            first = forward(input_ids=ids[:, :9], use_cache=True, logits_to_keep=2)
            second = forward(input_ids=ids[:, 9:10], past_key_values=first.past_key_values, use_cache=True)
            return [logits(first), logits(second)]

        yield decode

    return scenarios


def logits(result: Any) -> torch.Tensor:
    """Logits of the host's output, whatever form its config gives it."""
    return result.logits if hasattr(result, "logits") else result[0]
