"""The stages in their order; each is a function that yields findings about one candidate."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.subject import Subject

Check = Callable[[Subject], Iterator[Finding]]

# Stage to the module that holds it. The order is the order of blame: a later failure may follow from an earlier one.
STAGES: Mapping[str, str] = MappingProxyType(
    {
        "import": "load",
        "eager": "eager",
        "mutation": "mutation",
        "weights": "weights",
        "cache": "cache",
        "fake": "fake",
        "opcheck": "opcheck",
        "dynamo": "dynamo",
        "execution": "execution",
        "recompile": "recompile",
        "dynamic_shapes": "dynamic_shapes",
        "aot": "compiled",
        "inductor": "compiled",
        "layout": "layout",
        "fusion": "fusion",
        "freezing": "freezing",
        "autocast": "modes",
        "backward": "backward",
        "export": "export",
        "aoti": "aoti",
        "nested_region": "nested_region",
        "dtensor": "dtensor",
        "host_sync": "host_sync",
        "streams": "streams",
        "capture": "capture",
        "replay": "replay",
        "allocation": "allocation",
        "rng": "rng",
        "autotune": "autotune",
        "workspace": "workspace",
        "inference_mode": "modes",  # after the stages that find kept state: with it, it breaks here too
        "nccl": "nccl",
        "graph_partition": "graph_partition",
        "vllm": "vllm_piecewise",
        "sglang": "sglang_graph",
    }
)
# Inductor generates and compiles C++ or Triton here.
COMPILES = ("inductor", "fusion", "graph_partition", "vllm", "sglang")


def check_of(stage: str) -> Check:
    """The function of ``stage``: ``check_STAGE`` in its module."""
    module = importlib.import_module(f"{__name__}.{STAGES[stage]}")
    return getattr(module, f"check_{stage}")
