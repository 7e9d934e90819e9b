"""Candidates that work on the host cannot live in an engine's captured graphs: replays would leave that work out."""

from __future__ import annotations

from fastkernels.errors import ServingError
from fastkernels.patches.patch import Patch


def require_capturable(handle: Patch, way_out: str) -> None:
    """Raises ServingError where a candidate that stands was seen to work on the host; ``way_out``: how the engine is
    told to capture nothing."""
    for path, dispatcher in handle.dispatchers.items():
        for part, lowered in dispatcher.binding.lowered.items():
            work = lowered.op.host_work if lowered.op is not None else None
            if work is not None:
                origin = type(lowered.op.implementation) if lowered.op is not None else type(dispatcher.implementation)
                raise ServingError(
                    f"{path or '(model)'}{f', {part} in it' if part else ''}: candidate {origin.__module__}."
                    f"{origin.__qualname__} for {dispatcher.proposal.task} works on the host ({work}), and this engine "
                    "captures CUDA graphs, whose replays would leave that out. Keep the work on the device, leave the "
                    f"site out (FASTKERNELS_SELECT), or run with {way_out}."
                )
