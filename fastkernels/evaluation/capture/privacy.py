"""What of a call tells the prompts: token ids, wherever they go, what is computed of one token alone, and whatever the
towers of images and sound compute."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fastkernels.patches.site import Site

TOKENS = ("input_ids", "decoder_input_ids", "labels")  # of a whole model's arguments
EMBEDDED = ("inputs_embeds", "decoder_inputs_embeds")
EMBEDDING = "embedding"
ROUTED = "fused_experts"  # a token's experts are a function of it as its hidden state is
MIXING = frozenset({"attention", "attention_block", "encoder_attention", "served_attention"})


class Secrets:
    """The token ids of the step under way, and whether attention has mixed its tokens yet.

    Until then each row of a hidden state is a function of its token, and whoever has the weights can look it up. The
    first layer hands such rows on beside its attention (the residual, a parallel MLP): the second one's return ends it.
    What a tower beside the text computes is an image's or a sound's, and is told at no depth.
    """

    def __init__(self, model: nn.Module) -> None:
        text = text_part(model)
        self._inputs = (*EMBEDDED, getattr(model, "main_input_name", ""))
        self._text = set(text.modules())
        self._beside = set(model.modules()) - self._text - _heads(model)
        self._beside -= {part for part in self._beside if text in part.modules()}  # what holds the text's part
        self._ids: set[str] = set()
        self._unmixed = False
        self._first: str | None = None  # path of the attention that returned first

    def begin(self, arguments: Mapping[str, Any]) -> None:
        """A call of the whole model begins."""
        ids = [t for t in map(arguments.get, TOKENS) if isinstance(t, torch.Tensor)]
        self._ids = {_digest(t) for t in ids if not is_capturing(t)}
        self._unmixed = bool(ids) or any(arguments.get(name) is not None for name in self._inputs)
        self._first = None

    def embedded(self, result: Any) -> None:
        """An embedding returned."""
        self._unmixed, self._first = True, None

    def mixed(self, site: Site) -> None:
        """An attention returned; one within another is the same, and one that is not of the text mixes no tokens."""
        if site.module not in self._text:
            return
        path = site.path
        first = self._first = path if self._first is None else self._first
        if path != first and not path.startswith(f"{first}.") and not first.startswith(f"{path}."):
            self._unmixed = False

    def told_by(self, site: Site, tensor: torch.Tensor) -> bool:
        """Whether a tensor at a site tells them."""
        if site.module in self._beside or site.task.level == 4 or site.task.name == EMBEDDING:
            return True
        if tensor.is_floating_point() or tensor.is_complex() or site.task.name == ROUTED:
            return self._unmixed
        return _digest(tensor) in self._ids

    def forget(self) -> None:
        """Nothing is under way any more."""
        self._ids, self._unmixed, self._first = set(), False, None


def is_capturing(tensor: torch.Tensor) -> bool:
    """Whether a CUDA graph is being recorded: nothing may then be read from the device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _digest(tensor: torch.Tensor) -> str:
    """Of the integers in a tensor, whatever its shape and width."""
    return hashlib.sha256(tensor.detach().to("cpu", torch.int64).flatten().numpy().tobytes()).hexdigest()


def text_part(model: nn.Module) -> nn.Module:
    """What computes on tokens: a tower for images mixes none of them."""
    for name in ("get_decoder", "get_language_model"):
        found = getattr(model, name, lambda: None)()
        if isinstance(found, nn.Module):
            return found
    found = getattr(model, "language_model", None)
    return found if isinstance(found, nn.Module) else model


def _heads(model: nn.Module) -> set[nn.Module]:
    """What makes logits of the text's hidden states, beside it."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return set(head.modules()) if isinstance(head, nn.Module) else set()
