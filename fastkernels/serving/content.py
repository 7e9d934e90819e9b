"""A hash of all that a compiled graph may hold of a patch: for engines' compile caches, which know nothing of it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fastkernels
from fastkernels.patches.patch import Patch
from fastkernels.serving.lock import content_of

# Changed with their versions alone, which engines' own keys hold.
VERSIONED = {"torch", "triton", "transformers", "numpy", "vllm", "sglang", "fastkernels"} | sys.stdlib_module_names


def digest_of(handle: Patch, candidates: str | None = None) -> str:
    """Hash of what was put in and how: sites, lowerings and operators; the candidates' classes, every file of their
    folder, and the modules that their code reaches outside it; this library's own files, whose code is traced too.

    Args:
        candidates: as the operator named them; a folder's whole content counts, helpers and built libraries included.
    """
    report, chosen = handle.report, handle._candidates
    held = [(s.path, s.task, s.state, s.candidate, s.lowering, s.lowering_inside) for s in report.sites]
    operators = sorted(
        op.name()
        for d in handle.dispatchers.values()
        for lowered in d.binding.lowered.values()
        if lowered.op is not None
        for op in lowered.op.ops.values()
    )
    folder = Path(candidates).expanduser() if candidates is not None else None
    files = content_of(folder) if folder is not None and folder.is_dir() else {}
    modules = {c.cls.__module__ for c in chosen.by_task.values()}
    parts: list[Any] = [
        *(held, operators, chosen.identity, files, own_digest()),
        [(c.task, c.digest) for c in report.candidates],
        sorted((str(file), _hash(file)) for file in _files_reached(modules)),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def own_digest() -> str:
    """Hash of this library's own files that take part in a call."""
    root = Path(fastkernels.__file__).parent
    files = sorted(f for part in ("patches", "runtime", "tasks") for f in (root / part).rglob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def _files_reached(names: set[str]) -> Iterator[Path]:
    """Files of these modules and of all that they name, as a module or by something that is defined there."""
    pending, seen = sorted(names), set(names)
    for name in pending:  # grows
        module = sys.modules.get(name)
        if module is None or name.partition(".")[0] in VERSIONED:
            continue
        file = Path(getattr(module, "__file__", None) or "")
        if file.is_file():
            yield file
        for value in list(vars(module).values()):
            found = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(found, str) and found not in seen:
                seen.add(found)
                pending.append(found)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
