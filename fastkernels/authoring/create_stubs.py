"""create_stubs: a candidate folder to start from, one file a task, each delegating to the task's reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastkernels.authoring.captured import Captured, captured
from fastkernels.authoring.model import describe_model
from fastkernels.authoring.shapes import shaped
from fastkernels.authoring.stub import MOST_SHAPES, facts_in_words, order, stub
from fastkernels.errors import EvaluationError
from fastkernels.patches.build import facts_of
from fastkernels.patches.recognise import adapters_for, recognise
from fastkernels.tasks import Interface, Task, all_tasks, by_interface, get_task
from fastkernels.tasks.registry import LEVELS

# Paths at which a task is computed, by constructor facts in words.
Places = dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class Stubs:
    """Files written, and those that were there already and were left alone."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]


def create_stubs(
    out: Path | str,
    *,
    levels: Sequence[int] | None = None,
    architecture: str | None = None,
    tasks: Sequence[str] | None = None,
    captures: Path | str | None = None,
    force: bool = False,
) -> Stubs:
    """Writes ``L{level}/{task}.py`` below ``out``: candidates that load, pass every check, and gain nothing yet.

    Args:
        levels: only tasks of these levels.
        architecture: only tasks that this model has sites for, or that a reference at one of its sites is built
            from: a packaged config's name, a config file, a folder that holds one, or a hub id in the cache.
        tasks: only these, by name.
        captures: a capture, or a folder with several (a scenario's models, workloads and ranks); the docstrings list
            their shapes, and only tasks that they have calls of are written.
        force: write over files that are there.

    Raises:
        CandidateError: a task is named that there is none of.
        EvaluationError: nothing is left to write, or the config or the capture cannot be read.
    """
    wrong = sorted(set(levels or ()) - set(LEVELS))
    if wrong:
        raise EvaluationError(f"level {wrong[0]} is not one of {LEVELS}.")
    chosen = [get_task(name) for name in tasks] if tasks else list(all_tasks().values())
    chosen = [task for task in chosen if not levels or task.level in levels]
    places = places_in(architecture, top=max((t.level for t in chosen), default=1)) if architecture else None
    if places is not None:
        chosen = [task for task in chosen if task.name in places]
    found = captured(captures) if captures is not None else None
    texts: dict[Path, str] = {}
    for task in chosen:
        text = _text(task, found, (places or {}).get(task.name, {}))
        if text is not None:
            texts[Path(out) / f"L{task.level}" / f"{task.name}.py"] = text
    if not texts:
        raise EvaluationError(
            f"no task is left of {len(all_tasks())}: "
            f"levels {list(levels or LEVELS)}, tasks {list(tasks or ['all'])}, "
            f"architecture {architecture or 'any'}, capture {captures or 'none'}. Leave one of these out."
        )
    kept = tuple(file for file in texts if file.exists() and not force)
    for file, text in texts.items():
        if file not in kept:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return Stubs(written=tuple(file for file in texts if file not in kept), kept=kept)


def _text(task: Task, told: Captured | None, places: Places) -> str | None:
    """The stub's text; None where captures are given that have no call of the task."""
    if told is None:
        cases = order(task.cases())
        more = f"list(fastkernels.tasks.get_task({task.name!r}).cases())"
        listed = list(shaped(task, cases[:MOST_SHAPES]))
        return stub(task, listed, of=len(cases), told="of the task's cases", more=more, sites=places)
    listed, of = told.shapes(task, limit=MOST_SHAPES)
    return stub(task, listed, of=of, told=told.told, more="in the capture", sites=places) if listed else None


def places_in(architecture: str, *, top: int) -> Mapping[str, Places]:
    """Where the model of a config computes each task: its sites, and the parts of their references.

    Args:
        top: highest level to look for.
    """
    described = describe_model(architecture)
    names = frozenset(name for name, task in all_tasks().items() if task.level <= top)
    sites = recognise(described.model, adapters_for(described.model), tasks=names).sites
    places: dict[str, Places] = {}
    for site in sites:
        whole = facts_of(site.task, (), site.proposal.facts)
        places.setdefault(site.task.name, {}).setdefault(facts_in_words(whole), []).append(site.path)
    inside: dict[str, Places] = {}
    for site in sites:
        with torch.device("meta"):
            reference = site.task.interface(**site.proposal.facts)
        for task, facts in _parts(reference):
            if task.name not in places:
                paths = inside.setdefault(task.name, {}).setdefault(f"{facts}, inside {site.task.name}", [])
                paths.append(site.path)
    return places | inside


def _parts(reference: nn.Module) -> list[tuple[Task, str]]:
    """Tasks whose interfaces a reference holds, with their constructor facts."""
    found = []
    for part in list(reference.modules())[1:]:
        task = by_interface().get(type(part))
        if task is not None and isinstance(part, Interface):
            found.append((task, facts_in_words(facts_of(task, *part.constructed_with))))
    return found
