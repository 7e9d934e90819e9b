"""Logits: the product with the head, which a model's ``compute_logits`` asks for outside its compiled forward.

The head is never called as a module, so a candidate stands at ``compute_logits``; what the engine does with the raw
product (gathering over ranks, padding, soft cap, scale) follows it as it would there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastkernels.patches.recognise import Host
from fastkernels.patches.site import Proposal, one_tensor
from fastkernels.patches.source import Param, Source
from fastkernels.patches.vllm.collectives import all_gather
from fastkernels.patches.vllm.engine import LORA, closed, gated, is_a, placement
from fastkernels.patches.vllm.linear import rows

PROCESSOR = "vllm.model_executor.layers.logits_processor:LogitsProcessor"
HEAD = "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding"
PLAIN_METHODS = ("UnquantizedEmbeddingMethod", "UnquantizedLinearMethod")


def logits(module: nn.Module, host: Host) -> Iterator[Proposal]:
    """Modules with a ``compute_logits``, a head and a processor."""
    processor = module._modules.get("logits_processor")
    name, head = _head_of(module)
    if processor is None or head is None or not hasattr(type(module), "compute_logits"):
        return
    if is_a(processor, LORA) or is_a(head, LORA):
        yield gated("linear", "LoRA: its wrapper computes the logits")
        return
    if not is_a(processor, PROCESSOR) or not is_a(head, HEAD):
        return
    reason = closed(head, host) or closed(processor, host) or _unsaid(head, processor, host)
    if reason:
        yield gated("linear", f"logits: {reason}")
        return
    output_size, input_size = head._parameters["weight"].shape  # type: ignore[union-attr] # there: nothing is closed
    bias = head._parameters.get("bias") is not None
    state: dict[str, Source] = {"weight": Param(f"{name}.weight")}
    if bias:
        state["bias"] = Param(f"{name}.bias")
    yield Proposal(
        task="linear",
        facts={"input_size": input_size, "output_size": output_size, "bias": bias},
        state=state,
        enter=one_tensor,
        leave=lambda out, call: _finish(out, processor, ranks=int(head.tp_size)),  # type: ignore[arg-type] # an int
        scenarios=rows(input_size),
        evidence="class",
        inner=("logits_processor",),
        on_live_weights=True,
        runs_on=placement(host),
        method="compute_logits",
    )


def _head_of(module: nn.Module) -> tuple[str, nn.Module | None]:
    """The head and its name: the embedding, in models that are always tied and have no head of their own."""
    if "lm_head" in module._modules:
        return "lm_head", module._modules["lm_head"]
    inner = module._modules.get("model")
    return "model.embed_tokens", None if inner is None else inner._modules.get("embed_tokens")


def _unsaid(head: nn.Module, processor: nn.Module, host: Host) -> str:
    method, dtype = type(head.quant_method).__name__, getattr(processor, "head_dtype", None)
    if method not in PLAIN_METHODS:
        return f"quant method {method}: its weights are not the plain matrix of the task"
    if processor.logits_as_input:
        return "the model computes them itself"
    if dtype is not None and dtype != placement(host)[1]:
        return f"computed in {dtype}, the model in {placement(host)[1]}"
    weight = head._parameters.get("weight")
    if weight is None or weight.dim() != 2:
        return "the engine packed the head's weight; cpu_weights.keep_weights() before loading keeps it"
    if head.tp_size != 1 and not processor.use_all_gather:
        return "one rank alone gathers them"
    return ""


def _finish(out: torch.Tensor, processor: Any, *, ranks: int) -> torch.Tensor:
    if ranks > 1:
        out = all_gather(out)
    out = out[..., : processor.org_vocab_size]
    if processor.soft_cap is not None:
        out = torch.tanh(out / processor.soft_cap) * processor.soft_cap
    return out if processor.scale == 1.0 else out * processor.scale
