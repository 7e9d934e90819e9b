"""What SGLang's modules need around a call outside a step: nothing, once the runner's model is loaded."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


def call_context(model_runner: Any) -> AbstractContextManager[None]:
    """Context for probes of a loaded runner's modules.

    Those that read a step's own state (attention, logits) are gated and not called. What the others read, the
    configuration of the process and its groups, is published before a model is built.
    """
    return nullcontext()
