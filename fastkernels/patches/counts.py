"""What stands on a patched model, and how often it ran: call counters of dispatchers and of candidates inside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastkernels.patches.dispatch import Dispatcher
from fastkernels.patches.site import Forward, Site


@dataclass(kw_only=True)
class Counts:
    """Dispatchers by path: the ``outermost``, and those ``beneath`` one that stands on a whole model."""

    outermost: dict[str, Dispatcher] = field(default_factory=dict)
    beneath: dict[str, Dispatcher] = field(default_factory=dict)
    inner: dict[str, Counter[str]] = field(default_factory=dict)

    def watch(self, path: str, implementation: nn.Module) -> None:
        """Counts calls of the candidates inside an implementation: being placed there is no proof of being used."""
        counts = self.inner.setdefault(path, Counter())
        for where, candidate in implementation.__dict__["placed"]:
            part = implementation.get_submodule(where)
            for method in ("forward", "accumulate", "rotate"):
                if hasattr(part, method):
                    part.__dict__[method] = counting(getattr(part, method), counts, f"{where}:{candidate.task.name}")

    def around(self, site: Site) -> Iterator[tuple[str, Dispatcher]]:
        """The dispatchers on the site's module or on one that contains it, innermost kind first."""
        for standing in (self.beneath, self.outermost):
            for path, dispatcher in sorted(standing.items(), key=lambda item: -len(item[0])):
                if path in ("", site.path) or site.path.startswith(f"{path}."):
                    yield path, dispatcher

    def calls(self, site: Site) -> int:
        """Calls of the implementation at ``site``, or of the candidates that stand for it inside another."""
        total = 0
        for path, dispatcher in self.around(site):
            if path == site.path and dispatcher.proposal.task == site.task.name:
                total += dispatcher.calls
                continue
            image = _image(site.path.removeprefix(f"{path}.") if path else site.path, dispatcher)
            for key, count in self.inner.get(path, Counter()).items():
                where, _, task = key.rpartition(":")
                if task == site.task.name and (where == image or where.startswith(f"{image}.")):
                    total += count
        return total

    def bypassed(self, site: Site) -> dict[str, int]:
        """Why calls went to the original at the innermost dispatcher that serves ``site``."""
        innermost = next(self.around(site), None)
        return dict(innermost[1].bypassed) if innermost is not None else {}

    def calls_of(self, task: str) -> int:
        """Calls of the candidate for ``task``: at sites of its own and inside other implementations."""
        standing = (*self.outermost.values(), *self.beneath.values())
        inner = (n for counts in self.inner.values() for key, n in counts.items() if key.endswith(f":{task}"))
        return sum(d.calls for d in standing if d.proposal.task == task) + sum(inner)

    def placements(self) -> Counter[str]:
        """Candidates inside outermost implementations, by task: how many places."""
        counts: Counter[str] = Counter()
        for dispatcher in self.outermost.values():
            counts.update(c.task.name for _, c in dispatcher.implementation.__dict__["placed"])
        return counts


def _image(relative: str, outer: Dispatcher) -> str:
    """The place in an implementation of what lies at ``relative`` in the module that it computes."""
    image = relative
    for attribute, name in outer.proposal.parts.items():
        if relative == name or relative.startswith(f"{name}."):
            image = attribute + relative[len(name) :]
    return image


def counting(method: Forward, counts: Counter[str], place: str) -> Forward:
    """``method`` of one of our own instances, counted; not while Dynamo traces, to which a count is a guard."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            counts[place] += 1
        return method(*args, **kwargs)

    return counted
