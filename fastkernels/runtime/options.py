"""What ``torch.compile(backend="fastkernels", mode=..., options=...)`` may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

from fastkernels.errors import BackendError

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
Select = Literal["all", "measured"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the backend; every option of Inductor's may stand beside them, and goes into ``inductor``.

    Args:
        mode: as in ``torch.compile``, which takes ``mode`` or ``options`` and not both.
        batch_sizes: sizes of the first dimension of inputs that share one graph from the first call on.
        sequence_lengths: the same for the second dimension.
        exclude: globs over task, operator name or candidate class: these operators go back to their reference.
        capture_unsafe: globs of the same kind: these operators stay out of CUDA graphs.
        select: ``measured`` keeps an operator only where the graph is faster with it than with its reference.
            Candidates traced inline are no operators, and stay: ``patch(lowering="opaque")`` makes them some.
        inductor: everything else, by the names of ``torch._inductor.config``.
    """

    mode: Mode = "default"
    batch_sizes: tuple[int, ...] = ()
    sequence_lengths: tuple[int, ...] = ()
    exclude: tuple[str, ...] = ()
    capture_unsafe: tuple[str, ...] = ()
    select: Select = "all"
    inductor: Mapping[str, Any] = field(default_factory=dict)


OURS = tuple(f.name for f in fields(Options) if f.name != "inductor")
SIZES, GLOBS = ("batch_sizes", "sequence_lengths"), ("exclude", "capture_unsafe")


def parse(mode: str | None, options: Mapping[str, Any] | None) -> Options:
    """The options of one ``torch.compile``.

    Raises:
        BackendError: an option that neither we nor Inductor know, or a value of the wrong kind.
    """
    from torch._inductor import config  # takes seconds to import

    given = {name.replace("-", "_"): value for name, value in (options or {}).items()}
    ours = {name: given.pop(name) for name in OURS if name in given}
    if mode is not None:
        ours["mode"] = mode
    known = config.get_config_copy()
    unknown = sorted(name for name in given if name not in known)
    if unknown:
        near = sorted({match for name in unknown for match in get_close_matches(name, [*OURS, *known])})
        raise BackendError(
            f"options: {', '.join(unknown)} is not an option of backend 'fastkernels'."
            + (f" Close to it: {', '.join(near)}." if near else "")
            + f" Its own are {', '.join(OURS)}; those of torch._inductor.config may be given too, by their names there."
        )
    for name in SIZES:
        if name in ours:
            ours[name] = _all(name, ours[name], int, "sizes, such as [2, 4, 8]")
    for name in GLOBS:
        if name in ours:
            ours[name] = _all(name, ours[name], str, "globs, such as ['rms_norm']")
    for name, choices in (("mode", get_args(Mode)), ("select", get_args(Select))):
        if ours.get(name, choices[0]) not in choices:
            raise BackendError(f"{name}: {', '.join(map(repr, choices))}, not {ours[name]!r}.")
    return Options(**ours, inductor=given)


def _all(name: str, value: Any, kind: type, example: str) -> tuple[Any, ...]:
    # A range, a list, a set: whatever is not one string and holds the right kind. bool is an int to Python.
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise BackendError(f"options: {name} takes {example}, not {value!r}.")
    values = tuple(value)
    if any(not isinstance(v, kind) or isinstance(v, bool) for v in values):
        raise BackendError(f"options: {name} takes {example}, not {value!r}.")
    return values
