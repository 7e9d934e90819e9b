"""extract: the distinct operators, blocks and layers of a model, each as a file that runs on its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from fastkernels.authoring.check import Checked, check_imported, check_task
from fastkernels.authoring.file_names import short, stems
from fastkernels.authoring.imported_file import PLACEMENT, imported_file
from fastkernels.authoring.model import Described, describe_model
from fastkernels.authoring.recipe import NotPlain
from fastkernels.authoring.task_file import Source, task_file
from fastkernels.authoring.walk import Call, Walk, probed, walk
from fastkernels.errors import EvaluationError
from fastkernels.patches.recognise import LAYER_INDEX, adapters_for, recognise
from fastkernels.patches.site import Site
from fastkernels.tasks import all_tasks
from fastkernels.tasks.accuracy import Error

LEVELS = (1, 2, 3)
IDLE = ("dropout", "droppath", "drop_path", "identity")  # in a class's name: nothing in evaluation mode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """One file: what it holds (a task, or a class that is imported), where in the model, and how the check went."""

    file: Path
    level: int
    kind: Literal["task", "imported"]
    what: str
    paths: tuple[str, ...]
    checked: Checked | None = None


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """All files of a model, and what could not be written with the reason why."""

    model: str
    cls: str
    layers: int
    of_layers: int
    files: tuple[Extracted, ...]
    left_out: Mapping[str, str]

    @property
    def unequal(self) -> tuple[Extracted, ...]:
        """Files whose check found them unequal to the live module."""
        return tuple(f for f in self.files if f.checked is not None and not f.checked.equal)


@dataclass(kw_only=True)
class _Piece:
    """What becomes one file: the module that stands for all of its like."""

    level: int
    what: str
    module: nn.Module
    paths: list[str]
    text: str
    site: Site | None = None
    reason: str = field(default="")


def extract(
    config: str,
    out: Path | str | None = None,
    *,
    levels: Sequence[int] = LEVELS,
    layers: int | None = None,
    check: bool = False,
) -> Extraction:
    """Writes the distinct parts of the model that ``config`` describes as standalone files below ``out``.

    Where a module is a site of a task the file holds the task's reference and needs torch alone; elsewhere it imports
    the module's class from transformers. One file stands for all modules with equal constants.

    Args:
        config: a packaged config's name, a config file, a folder that holds one, or a hub id in the cache.
        out: folder for ``L1/*.py`` .. ``L3/*.py``; ``extracted/NAME`` by default.
        levels: of 1 (operators), 2 (blocks), 3 (layers).
        layers: how many layers to build; by default the fewest that show every kind.
        check: compare each file with the live module on random weights. Its ``checked`` says how near they are.

    Raises:
        EvaluationError: there is no such config, a level is none of the three, or nothing could be extracted.
    """
    wrong = sorted(set(levels) - set(LEVELS))
    if wrong:
        raise EvaluationError(f"level {wrong[0]} is not one of {LEVELS}; a whole model is no task file.")
    described = describe_model(config, layers=layers)
    top = max(levels)
    tasks = frozenset(name for name, task in all_tasks().items() if task.level <= top)
    sites = recognise(described.model, adapters_for(described.model), tasks=tasks).sites
    seen = walk(described.model, sites)
    left_out: dict[str, str] = {}
    pieces = [p for p in _pieces(described, sites, seen, left_out) if p.level in levels]
    left_out |= seen.uncalled
    if seen.failure:
        left_out["(forward pass)"] = seen.failure
    if not pieces:
        raise EvaluationError(f"{config}: nothing to extract: {'; '.join(left_out.values()) or 'no module is called'}.")
    folder = Path(out) if out is not None else Path("extracted") / short(config)
    files = []
    for piece, stem in zip(pieces, stems((p.level, p.what, p.paths[0]) for p in pieces), strict=True):
        file = folder / f"L{piece.level}" / f"{stem}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(piece.text, encoding="utf-8")
        kind: Literal["task", "imported"] = "imported" if piece.site is None else "task"
        written = Extracted(file=file, level=piece.level, kind=kind, what=piece.what, paths=tuple(piece.paths))
        if check:
            written = replace(written, checked=_checked(file, piece, described))
        files.append(written)
    return Extraction(
        model=config,
        cls=type(described.model).__name__,
        layers=described.layers,
        of_layers=described.of_layers,
        files=tuple(files),
        left_out=left_out,
    )


def _checked(file: Path, piece: _Piece, described: Described) -> Checked:
    try:
        return check_imported(file, piece.module, described) if piece.site is None else check_task(file, piece.site)
    except EvaluationError as error:
        endless = Error(l2=float("inf"), peak=float("inf"))
        return Checked(error=endless, limit=endless, why=str(error))


def _pieces(described: Described, sites: Sequence[Site], seen: Walk, left_out: dict[str, str]) -> Iterator[_Piece]:
    """Files of tasks first, then of the modules that are in no site."""
    entered = {(s.path, s.task.name): call for s in sites if (call := _entered(s, seen, described)) is not None}
    grouped: dict[str, list[Site]] = {}
    for site in sites:
        if (site.path, site.task.name) in entered:
            grouped.setdefault(f"{site.task.name} {sorted(site.proposal.facts.items(), key=str)}", []).append(site)
    for group in grouped.values():
        first = group[0]
        paths = [s.path for s in group]
        try:
            text = task_file(
                first.task,
                first.proposal.facts,
                entered[first.path, first.task.name],
                source=_source(described, first.module, paths),
                dtype=described.dtype,
                of=_walked_in(described),
            )
        except NotPlain as error:
            left_out[first.path] = f"{first.task.name}: {error}"
            continue
        yield _Piece(
            level=first.task.level, what=first.task.name, module=first.module, paths=paths, text=text, site=first
        )
    yield from _others(described, {path for path, _ in entered}, seen, left_out)


def _entered(site: Site, seen: Walk, described: Described) -> Sequence[Any] | None:
    """What the task is called with at this site in the pass, or in its probe where the pass did not come so far.

    None where it is not called, or not as the task is (attention over another sequence).
    """
    call = seen.calls.get(site.path)
    if call is None:
        return probed(site, _walked_in(described)) if seen.failure else None
    arguments = site.proposal.enter(call.args, dict(call.kwargs))
    return None if isinstance(arguments, str) else arguments


def _others(described: Described, covered: set[str], seen: Walk, left_out: dict[str, str]) -> Iterator[_Piece]:
    """Modules that are called, compute something, and are neither a site nor inside one."""
    modules = dict(described.model.named_modules())
    grouped: dict[str, _Piece] = {}
    for path, call in seen.calls.items():
        module = modules[path]
        level = level_of(module, path, modules)
        inside = any(path == site or path.startswith(f"{site}.") for site in covered)
        if inside or level > max(LEVELS) or _idle(module) or ".parametrizations." in path:
            continue
        key = f"{type(module).__module__}.{type(module).__qualname__} {_constants(described, module)} {_kind(call)}"
        if key in grouped:
            grouped[key].paths.append(path)
            continue
        grouped[key] = piece = _Piece(level=level, what=type(module).__name__, module=module, paths=[path], text="")
        try:
            piece.text = _imported(described, piece, call)
        except NotPlain as error:
            piece.reason = left_out[path] = f"{piece.what}: {error}"
    for piece in grouped.values():
        if not piece.reason:
            call = seen.calls[piece.paths[0]]
            piece.text = _imported(described, piece, call)  # again, as it names all paths
            yield piece


def _imported(described: Described, piece: _Piece, call: Call) -> str:
    constructed = described.constructed.get(id(piece.module), {})
    if not any(name.startswith("*") for name in constructed) and not _as_constructed(piece.module, constructed):
        raise NotPlain("the model changed it after its construction, so its constructor alone does not make it")
    return imported_file(
        piece.module,
        constructed,
        call,
        level=piece.level,
        source=_source(described, piece.module, piece.paths),
        dtype=described.dtype,
        of=_walked_in(described),
    )


def _as_constructed(module: nn.Module, constructed: Mapping[str, Any]) -> bool:
    """Whether the constructor alone makes a module of the same parts with the same state."""
    with torch.device("meta"):  # as `imported_file` writes the call
        anew = type(module)(**{name: value for name, value in constructed.items() if name not in PLACEMENT})
    parts = [[(n, type(p)) for n, p in m.named_modules()] for m in (module, anew)]
    states = [{n: t.shape for n, t in m.state_dict().items()} for m in (module, anew)]
    return parts[0] == parts[1] and states[0] == states[1]


def _constants(described: Described, module: nn.Module) -> str:
    constructed = described.constructed.get(id(module), {})
    told = {k: v for k, v in constructed.items() if k not in (*LAYER_INDEX, "config") and "drop" not in k}
    return repr((told, [tuple(parameter.shape) for parameter in module.parameters()]))


def _idle(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return any(word in name for word in IDLE) and not any(True for _ in module.parameters())


def _kind(call: Call) -> str:
    return repr(sorted(k for k, v in call.kwargs.items() if v is not None))


def level_of(module: nn.Module, path: str, modules: Mapping[str, nn.Module]) -> int:
    """1 for an operator, 2 for a block, 3 for a layer (an item of a list that has blocks in it), 4 for a model."""
    if not module._modules:
        return 1
    parts = (part for part in module.modules() if not isinstance(part, ParametrizationList))
    lists = any(isinstance(part, nn.ModuleList) and len(part) for part in parts)
    if lists or hasattr(module, "base_model_prefix"):
        return 4
    listed = isinstance(modules.get(path.rpartition(".")[0]), nn.ModuleList)
    return 3 if listed and any(child._modules for child in module.children()) else 2


def _walked_in(described: Described) -> Any:
    return next(described.model.parameters()).dtype


def _source(described: Described, module: nn.Module, paths: Sequence[str]) -> Source:
    return Source(model=short(described.name), cls=type(module).__name__, paths=tuple(paths))
