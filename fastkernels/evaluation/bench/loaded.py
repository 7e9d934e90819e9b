"""In a child: the implementation that a source names, as a candidate of its task."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from fastkernels.runtime.candidate import DECLARATION, Candidate, Supports, check_signature, digest_of
from fastkernels.runtime.load import import_file, load_file


def loaded(task: Any, source: dict[str, Any]) -> Candidate:
    """From a candidate's file, as the library loads it; or a class by its module's name, or in a file."""
    if source.get("cls") is None:
        return load_file(Path(source["file"]), task)
    module = None
    if source.get("module"):
        try:
            module = importlib.import_module(source["module"])
        except ImportError:
            if not source.get("file"):
                raise
    if module is None:
        folder = str(Path(source["file"]).parent)
        sys.path.insert(0, folder)
        module = import_file(Path(source["file"]), source["file"])
    cls: Any = module
    for part in source["cls"].split("."):
        cls = getattr(cls, part)
    _, supports, lowering = cls.__dict__.get(DECLARATION, (None, Supports(), None))
    check_signature(cls, task, source["cls"])
    return Candidate(
        task=task, cls=cls, origin=source["cls"], digest=digest_of(cls), supports=supports, lowering=lowering
    )
