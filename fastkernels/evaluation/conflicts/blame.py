"""Root cause and consequence: which failure explains which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from fastkernels.evaluation.conflicts.report import Cell

# Codes that name a symptom, not a mechanism: after any known failure they are its consequence.
SYMPTOMS = frozenset(
    {"PARITY", "CP_PARITY", "CP_ERROR", "EX_EXPORT", "OP_CHECK", "NODE_ELIMINATED", "CRASH", "HANG", "UNKNOWN"}
    | {"CG_CAPTURE_ERROR", "CG_REPLAY", "CG_PARTITION", "VL_ERROR", "SG_ERROR", "EAGER_ERROR", "AG_WRONG_GRAD"}
)
# A candidate that does not even run: whatever else is seen follows.
FATAL = frozenset({"LOAD_ERROR", "EAGER_ERROR", "CRASH", "HANG"})
# Mechanisms that show under further names. "X_" stands for the whole family.
FOLLOWS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "PARITY": ("ST_STALE_WEIGHT", "DT_", "IM_", "AG_", "DS_"),
        "DT_OUTPUT_DTYPE": ("FK_DTYPE", "DT_", "AG_", "IM_"),
        "ND_NONDET": ("ST_", "IM_", "GB_", "RC_", "CG_RNG", "AL_"),
        "ST_HISTORY": ("RC_", "ST_", "AL_", "IM_", "CG_", "DS_", "MU_", "AG_"),
        "ST_STALE_WEIGHT": ("AG_", "IM_", "RC_", "CG_STALE_PTR"),
        "MU_UNDECLARED": ("AL_", "IM_", "AG_", "ST_", "FK_"),
        "AL_INPUT_OUTPUT": ("AL_", "IM_", "AG_", "FK_", "MU_"),
        "AL_OUTPUTS_SHARE": ("AL_", "FK_", "AG_", "IM_"),
        "AL_PERSISTENT_OUTPUT": ("AL_", "CG_", "IM_", "AG_", "RC_", "MU_", "ST_", "DS_"),
        "FK_MISSING": ("FK_", "GB_", "DS_"),
        "FK_SHAPE": ("FK_", "GB_", "DS_", "AG_"),
        "FK_STRIDE": ("FK_", "AG_"),
        "FK_DTYPE": ("FK_", "DT_", "AG_"),
        "GB_DATA_DEP": ("GB_", "CG_", "DS_", "AG_", "FK_"),
        "GB_SIDE_EFFECT": ("GB_",),
        "GB_UNTRACEABLE_CALL": ("GB_", "CG_SYNC", "CG_CPU_TENSOR", "AG_", "FK_"),
        "RC_PY_STATE": ("IM_", "CG_STALE_PTR", "CG_ALLOC_IN_POOL", "CG_HOST_VALUE_BAKED", "DS_"),
        "DS_SPECIALIZED": ("DS_", "CG_"),
        "DS_SHAPE_GUARD": ("VL_ERROR",),
        "IM_INFERENCE_MODE": ("AG_",),
        "AG_MISSING": ("AG_",),
        "AG_NO_BACKWARD": ("AG_",),
        "CG_SYNC": ("CG_",),
        "CG_H2D_PAGEABLE": ("CG_",),
        "CG_CPU_TENSOR": ("CG_", "GB_", "DS_", "AG_", "IM_"),  # on a device eager itself raises
        "CG_WRONG_STREAM": ("CG_", "IM_"),
        "CG_STALE_PTR": ("CG_", "IM_"),
        "CG_UNJOINED_STREAM": ("CG_", "IM_"),
        "CG_CAPTURE_ERROR": ("CG_",),
        "CG_HOST_VALUE_BAKED": ("CG_",),
        "CG_ALLOC_IN_POOL": ("CG_STALE_PTR",),
        "CG_RNG": ("CG_",),
    }
)


# Right results as soon as somebody waits: what such a race has spoilt in the stages before is its consequence.
RACES = frozenset({"CG_WRONG_STREAM", "CG_UNJOINED_STREAM"})
RACED = frozenset({"PARITY", "ND_NONDET", "ST_HISTORY", "ST_STALE_WEIGHT", "AL_PERSISTENT_OUTPUT"})


# Warnings that an engine turns into failures: vLLM drops the guards that make a branch on a size right.
BECOMES = MappingProxyType({"DS_SHAPE_GUARD": "VL_ERROR"})


def explains(earlier: str, later: str) -> bool:
    """Whether a failure with code ``earlier`` accounts for one with code ``later`` in a later stage.

    >>> explains("MU_UNDECLARED", "CP_PARITY"), explains("MU_UNDECLARED", "CG_SYNC")
    (True, False)
    """
    if earlier == later or earlier in FATAL or later in SYMPTOMS:
        return True
    return any(later.startswith(family) for family in FOLLOWS.get(earlier, ()))


def blame(cells: Sequence[Cell]) -> None:
    """Marks each failing cell of one candidate, in the order of stages, as a root cause or as caused by an earlier one.

    Warnings are roots only where no contract cell fails, or where an engine's failure follows from them: beside another
    broken contract they are remarks.
    """
    codes = {c.code for c in cells if c.contract}
    warned = {w for w, becomes in BECOMES.items() if codes == {becomes}}
    failing = [c for c in cells if c.contract or (c.status == "fail" and (not codes or c.code in warned))]
    roots: list[Cell] = []
    race = next((c for c in failing if c.stage == "streams" and c.code in RACES), None)
    for cell in failing:
        if race is not None and cell.code in RACED:
            cell.caused_by = f"{race.stage}:{race.code}"
            continue
        cause = next((r for r in roots if explains(r.code or "", cell.code or "")), None)
        if cause is None:
            cell.root_cause = True
            roots.append(cell)
        else:
            cell.caused_by = f"{cause.stage}:{cause.code}"
    for cell in cells:
        if roots and cell.status == "fail" and not cell.root_cause and cell.caused_by is None:
            cause = next((r for r in roots if explains(r.code or "", cell.code or "")), None)
            cell.caused_by = f"{cause.stage}:{cause.code}" if cause is not None else None
