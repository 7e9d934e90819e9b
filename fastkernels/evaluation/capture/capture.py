"""The public verb ``fastkernels.capture``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.capturing import Capturing
from fastkernels.evaluation.capture.record import Capture, Values
from fastkernels.evaluation.capture.recorder import PER_KIND, Settings

if TYPE_CHECKING:
    from fastkernels.evaluation.capture.engines import EngineCapturing

MODES = ("none", "integers", "sampled", "all")


@overload
def capture(
    model: nn.Module,
    *,
    values: Values = ...,
    out: str | Path | None = ...,
    prompts: bool = ...,
    max_bytes: int = ...,
    per_kind: int = ...,
    name: str = ...,
    workload: str = ...,
) -> Capturing: ...
@overload
def capture(
    model: str | Path,
    *,
    values: Values = ...,
    out: str | Path | None = ...,
    prompts: bool = ...,
    max_bytes: int = ...,
    per_kind: int = ...,
    name: str = ...,
    workload: str = ...,
) -> list[Capture]: ...
@overload
def capture(
    model: Any,
    *,
    values: Values = ...,
    out: str | Path | None = ...,
    prompts: bool = ...,
    max_bytes: int = ...,
    per_kind: int = ...,
    name: str = ...,
    workload: str = ...,
    patience_s: float | None = ...,
) -> EngineCapturing: ...
def capture(
    model: Any,
    *,
    values: Values = "none",
    out: str | Path | None = None,
    prompts: bool = False,
    max_bytes: int = 1 << 28,
    per_kind: int = PER_KIND,
    name: str = "",
    workload: str = "",
    patience_s: float | None = None,
) -> Capturing | EngineCapturing | list[Capture]:
    """Records what passes the recognised sites of a live model: shapes, dtypes, strides, constructor facts, how often
    in which phase, where tokens are routed; and values, where they are asked for.

    A context: the calls made inside it are recorded, eagerly, also those of compiled models. Nothing stays on the
    model after it. Arguments are those of the task's interface, so each is a call that a candidate can be given.

    Args:
        model: a live module; or an engine whose workers were started with ``FASTKERNELS_WATCH=1``; or a scenario, by
            name or file, whose captures are returned (``capture_scenario`` takes more options).
        values: ``none``; ``integers``: routing ids, positions; ``sampled``: all tensors of ``per_kind`` calls of each
            kind (task, facts, shapes, phase); ``all``: of every call, while there is room.
        out: folder for ``capture.json``, ``values.safetensors`` and ``report.md``.
        prompts: also store token ids, and what shows them.
        max_bytes: of all values together, in one worker.
        per_kind: calls of one kind whose values are kept, each with the same probability.
        name, workload: what the capture is called. The workloads of a scenario have names.
        patience_s: for the answers of an SGLang engine's ranks; None for ten minutes at the end.

    Raises:
        EvaluationError: an argument is not as it must be, the model is patched, no module of it is a task's, or a
            capture lies in ``out`` already.

    >>> import torch
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.norm = nn.LayerNorm(16)
    ...     def forward(self, x):
    ...         return self.norm(x)
    >>> model = Block()
    >>> with capture(model) as c, torch.no_grad():
    ...     _ = model(torch.randn(2, 16))
    >>> c.result.site("norm").variants[0].describe()
    'x (2, 16) float32'
    """
    if values not in MODES:
        raise EvaluationError(f"values: one of {', '.join(MODES)}, not {values!r}.")
    if max_bytes < 0 or per_kind < 1:
        raise EvaluationError(f"max_bytes={max_bytes}, per_kind={per_kind}: at least 0, and at least 1.")
    settings = Settings(values=values, prompts=prompts, max_bytes=max_bytes, per_kind=per_kind)
    folder = Path(out).expanduser() if out is not None else None
    if isinstance(model, (str, Path)):
        from fastkernels.evaluation.capture.scenario import capture_scenario

        if workload:
            raise EvaluationError(
                f"workload={workload!r}: a scenario's workloads have names of their own. Leave it out."
            )
        if str(model).startswith(("http://", "https://")):
            raise EvaluationError(
                f"{model}: a server's workers cannot be asked from here. Give a vllm.LLM or an sglang.Engine that "
                "runs in this process, or a scenario."
            )
        return capture_scenario(
            model, values=values, out=out, prompts=prompts, max_bytes=max_bytes, per_kind=per_kind, name=name
        )
    if isinstance(model, nn.Module):
        return Capturing(model, settings, out=folder, name=name, workload=workload)
    from fastkernels.evaluation.capture.engines import EngineCapturing

    return EngineCapturing(model, settings, out=folder, name=name, workload=workload)
