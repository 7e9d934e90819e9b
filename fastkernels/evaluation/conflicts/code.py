"""What a code of the conflict matrix says: its meaning, how bad it is, and the way out."""

from __future__ import annotations

from dataclasses import dataclass

from fastkernels.evaluation.conflicts.report import Automatic, Mend, Severity


@dataclass(frozen=True, kw_only=True)
class Code:
    """A stable code. ``silent``: production would raise nothing; ``automatic``: how the library mends it."""

    name: str
    stage: str
    severity: Severity
    silent: bool
    meaning: str
    way_out: str
    automatic: Automatic | None = None

    @property
    def mend(self) -> Mend:
        return Mend(what=self.way_out, automatic=self.automatic)


def loud(name: str, stage: str, meaning: str, way_out: str, automatic: Automatic | None = None) -> Code:
    """A broken contract that raises in production too."""
    return _code(name, stage, meaning, way_out, automatic, severity="error", silent=False)


def silent(name: str, stage: str, meaning: str, way_out: str, automatic: Automatic | None = None) -> Code:
    """A broken contract that nothing raises for."""
    return _code(name, stage, meaning, way_out, automatic, severity="error", silent=True)


def warn(name: str, stage: str, meaning: str, way_out: str, automatic: Automatic | None = None) -> Code:
    """What works and costs something, or works only while guards hold."""
    return _code(name, stage, meaning, way_out, automatic, severity="warning", silent=True)


def _code(
    name: str, stage: str, meaning: str, way_out: str, automatic: Automatic | None, *, severity: Severity, silent: bool
) -> Code:
    return Code(
        name=name, stage=stage, severity=severity, silent=silent, meaning=meaning, way_out=way_out, automatic=automatic
    )
