"""A module captured into a CUDA graph, with its static inputs, as a host would do it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastkernels.evaluation.conflicts.compare import copied
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.report import Evidence
from fastkernels.evaluation.conflicts.subject import tensors

WARM_UPS = 3


class Graphed:
    """Captures ``module(*arguments)``; ``replay`` copies new contents in first.

    ``watching`` is entered around the captured call alone; ``mode`` is CUDA's capture error mode.

    Raises (on construction):
        RuntimeError: what CUDA said about the capture.
    """

    def __init__(
        self,
        module: nn.Module,
        arguments: tuple[Any, ...],
        *,
        warm_ups: int = WARM_UPS,
        pool: Any = None,
        watching: contextlib.AbstractContextManager[Any] | None = None,
        mode: str = "global",
    ) -> None:
        self.arguments = copied(arguments)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(warm_ups):
                module(*self.arguments)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        captured = torch.cuda.graph(self.graph, pool=pool, capture_error_mode=mode)
        with torch.no_grad(), captured, watching or contextlib.nullcontext():
            self.outputs = module(*self.arguments)

    def replay(self, arguments: tuple[Any, ...]) -> Any:
        """A copy of the outputs for new contents at the captured addresses."""
        for old, new in zip(tensors(self.arguments), tensors(arguments), strict=True):
            old.copy_(new)
        self.graph.replay()
        torch.cuda.synchronize()
        return pytree.tree_map_only(torch.Tensor, torch.clone, self.outputs)


# What CUDA and torch say when a capture fails, most specific first.
TEXTS = (
    ("unjoined work", "CG_UNJOINED_STREAM"),
    ("legacy stream", "CG_WRONG_STREAM"),
    ("uncaptured work in another stream", "CG_WRONG_STREAM"),
    ("StreamCaptureIsolation", "CG_WRONG_STREAM"),
    ("must end on the same stream", "CG_WRONG_STREAM"),
    ("StreamCaptureImplicit", "CG_WRONG_STREAM"),
    ("unless the CPU tensor is pinned", "CG_H2D_PAGEABLE"),
    ("CUDA generator", "CG_RNG"),
    ("CUDAGenerator", "CG_RNG"),
    ("Offset increment", "CG_RNG"),
    ("cpu device", "CG_CPU_TENSOR"),
    ("to be on the same device", "CG_CPU_TENSOR"),
    ("operation not permitted when stream is capturing", "CG_SYNC"),
    ("StreamCaptureUnsupported", "CG_SYNC"),
    ("last recorded in a capturing stream", "CG_SYNC"),  # waits for, or asks about, an event of the capture
    ("CapturedEvent", "CG_SYNC"),
)


def code_of(error: BaseException) -> str:
    """The code of a failed capture; errors that came before it in the chain are read too."""
    whole = " ".join(map(str, _chain(error))).lower()
    return next((code for words, code in TEXTS if words.lower() in whole), "CG_CAPTURE_ERROR")


def where_of(error: BaseException) -> Evidence:
    """The first error of the chain: after it, the end of the capture raises one of its own, from torch's lines."""
    return frame_of(list(_chain(error))[-1])


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
