"""What can be asked of a scenario's entries before anything is loaded or drawn."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.engines.engine import PLUGINS
from fastkernels.evaluation.e2e.run_entry import cannot_run
from fastkernels.evaluation.e2e.scenario import Entry

# Files of an engine with the class whose fields, and the function whose arguments, are its options.
OPTIONS = {
    "vllm": (("engine/arg_utils.py", "EngineArgs"), ("entrypoints/llm.py", "LLM")),
    "sglang": (("srt/server_args.py", "ServerArgs"),),
}


def require_runnable(entries: Sequence[Entry], *, name: str, device: str) -> None:
    """Asks every entry what would stop it: its own contradictions, an engine or a device that is not here, options that
    the engine does not know, a model that cannot be found.

    Args:
        name: of the scenario, for messages.

    Raises:
        EvaluationError: with a line for each entry that cannot be run.
    """
    lines = [f"{name}: {reason}" for entry in entries for reason in [next(_reasons(entry, device), None)] if reason]
    if lines:
        raise EvaluationError("\n".join(lines))


def _reasons(entry: Entry, device: str) -> Iterator[str]:
    why = cannot_run(entry)
    if why is not None:
        yield why
    if device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        yield f"{entry.model}: device {device}: there is none here. Set --device cpu."
    if entry.engine != "hf":
        yield from (f"{entry.model}: {reason}" for reason in _reasons_of_engine(entry))
    if entry.weights is None:
        yield from (f"{entry.model}: {reason}" for reason in _reasons_of_model(entry.model))


def _reasons_of_engine(entry: Entry) -> Iterator[str]:
    if importlib.util.find_spec(entry.engine) is None:
        yield f"engine {entry.engine}: it is not installed in {sys.prefix}. Capture with the Python that has it."
        return
    if not any(point.value.startswith("fastkernels.") for point in entry_points(group=PLUGINS[entry.engine])):
        yield f"engine {entry.engine}: no plugin of fastkernels is in {sys.prefix}. Install fastkernels there."
    known = options_of(entry.engine)
    for option in entry.engine_options:
        if known and option not in known:
            near = difflib.get_close_matches(option, known, 1)
            hint = f" Did you mean {near[0]}?" if near else " Take it out."
            yield f"engine_options: {entry.engine} has no option {option}.{hint}"


def options_of(engine: str) -> frozenset[str]:
    """The options of an engine that is installed, read from its source: importing it takes a while. Empty where this
    version keeps them elsewhere."""
    spec = importlib.util.find_spec(engine)
    root = Path(next(iter((spec and spec.submodule_search_locations) or ()), ""))
    found: set[str] = set()
    for file, name in OPTIONS.get(engine, ()):
        try:
            tree = ast.parse((root / file).read_text(encoding="utf-8"))
        except (OSError, SyntaxError):
            continue
        for part in tree.body:
            if isinstance(part, ast.ClassDef) and part.name == name:
                found |= _arguments(part)
    return frozenset(found)


def _arguments(of: ast.ClassDef) -> set[str]:
    """What a class is made with: the arguments of its constructor, or its fields where it inherits none."""
    for part in of.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return {a.arg for a in [*part.args.args, *part.args.kwonlyargs]} - {"self"}
    fields = [f.target.id for f in of.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
    return set() if of.bases else set(fields)


def _reasons_of_model(model: str) -> Iterator[str]:
    """A folder with a config, or a model of the hub that can be reached or is in its cache."""
    from transformers.utils import cached_file

    try:
        cached_file(model, "config.json")
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        yield f"no such model, here or where models are downloaded from: {said:.160}. Give `weights`, or a folder."
