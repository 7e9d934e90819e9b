"""What an operator asks of the plugins, by environment: every process of an engine inherits it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from fastkernels.errors import ServingError

if TYPE_CHECKING:
    from fastkernels.runtime.candidate import Lowering

PREFIX = "FASTKERNELS_"
OnError = Literal["stop", "serve"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One operator's wishes.

    Args:
        candidates: a folder, or ``shipped``, ``reference``, ``identity``; None patches nothing.
        select: globs over the sites' ``path`` or ``path:task``; empty for all.
        sites: a JSON file of ``[[path, task], ...]``: exactly these, for the null arm of a measurement.
        on_error: ``stop``: the engine does not start; ``serve``: it starts unpatched and says so.
        verify: whether each candidate is tried at each site before it is put in.
        lowering: how compiled graphs hold candidates; None for what suits the engine's mode.
        report_dir: where each worker writes its report.
        lock: a file of ``fastkernels lock``: candidates that differ from it are not loaded.
        watch: nothing is patched, and workers still tell what stands on their model: the baseline of a measurement.

    >>> Settings.from_environment({"FASTKERNELS_CANDIDATES": "shipped"}).on_error
    'stop'
    """

    candidates: str | None = None
    select: tuple[str, ...] = ()
    sites: Path | None = None
    on_error: OnError = "stop"
    verify: bool = True
    lowering: Lowering | None = None
    report_dir: Path | None = None
    lock: Path | None = None
    watch: bool = False

    @property
    def active(self) -> bool:
        """Whether a worker has anything to do."""
        return self.candidates is not None or self.watch

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Reads ``FASTKERNELS_CANDIDATES`` and its fellows.

        Raises:
            ServingError: a variable that nobody knows, a value that is none of those allowed, or no candidates in
                ``FASTKERNELS_CANDIDATES``: a variable of the operator's that was not set may have been meant.
        """
        if environment.get(f"{PREFIX}CANDIDATES") == "":
            raise ServingError(f"{PREFIX}CANDIDATES is empty. Name a folder of candidates, or unset it.")
        given = {k.removeprefix(PREFIX): v for k, v in environment.items() if k.startswith(PREFIX) and v}
        given = {k: v for k, v in given.items() if k not in OTHERS}
        if strange := sorted(set(given) - set(VARIABLES)):
            raise ServingError(
                f"{PREFIX}{strange[0]} is no setting. There are {', '.join(PREFIX + v for v in sorted(VARIABLES))}."
            )
        return cls(
            candidates=given.get("CANDIDATES"),
            select=tuple(given.get("SELECT", "").split()),
            sites=_path(given, "SITES"),
            on_error=_one_of(given, "ON_ERROR", get_args(OnError), "stop"),  # type: ignore[arg-type] # one of them
            verify=_one_of(given, "VERIFY", ("0", "1"), "1") == "1",
            lowering=_lowering(given),
            report_dir=_path(given, "REPORT_DIR"),
            lock=_path(given, "LOCK"),
            watch=_one_of(given, "WATCH", ("0", "1"), "0") == "1",
        )

    def environment(self) -> dict[str, str]:
        """The variables that say the same to a process of an engine."""
        told = {
            "CANDIDATES": self.candidates,
            "SELECT": " ".join(self.select),
            "SITES": self.sites and str(self.sites),
            "ON_ERROR": self.on_error,
            "VERIFY": str(int(self.verify)),
            "LOWERING": self.lowering,
            "REPORT_DIR": self.report_dir and str(self.report_dir),
            "LOCK": self.lock and str(self.lock),
            "WATCH": str(int(self.watch)),
        }
        return {PREFIX + name: value for name, value in told.items() if value}


VARIABLES = frozenset(
    {"CANDIDATES", "SELECT", "SITES", "ON_ERROR", "VERIFY", "LOWERING", "REPORT_DIR", "LOCK", "WATCH"}
)
OTHERS = frozenset({"RESULTS_DIR", "TRACKING_URI"})  # of other parts of this library


def _path(given: Mapping[str, str], name: str) -> Path | None:
    return Path(given[name]).expanduser() if name in given else None


def _lowering(given: Mapping[str, str]) -> Lowering | None:
    if "LOWERING" not in given:
        return None
    from fastkernels.runtime.candidate import Lowering  # imports torch, which a process that asks nothing is spared

    return _one_of(given, "LOWERING", get_args(Lowering), None)  # type: ignore[return-value] # one of them


def _one_of(given: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str | None) -> str | None:
    value = given.get(name, default)
    if value is not None and value not in allowed:
        raise ServingError(f"{PREFIX}{name}={value}: it takes {', '.join(allowed)}.")
    return value
