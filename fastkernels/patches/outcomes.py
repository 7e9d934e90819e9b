"""How each implementation of a patch is lowered: tried once for sites that are alike, on a call of the first."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from fastkernels.patches.build import facts_of
from fastkernels.patches.site import Forward, Proposal
from fastkernels.patches.verify import first_call
from fastkernels.runtime.candidate import Candidate, Lowering
from fastkernels.runtime.lowering import Lowered
from fastkernels.runtime.parts import lower_all

Subject = AbstractContextManager[tuple[nn.Module, Proposal, Forward, Forward]]


class Outcomes:
    """What was found for the sites and parts so far; ``close`` lets go of the operators that the trials made."""

    def __init__(self, lowering: Lowering) -> None:
        self.lowering = lowering
        self._sites: dict[tuple[Any, ...], Mapping[str, Lowered]] = {}
        self._parts: dict[tuple[Any, ...], dict[Any, Lowered]] = {}

    def lower(
        self,
        implementation: nn.Module,
        candidate: Candidate,
        proposal: Proposal,
        *,
        group: str,
        dtype: torch.dtype,
        device: torch.device,
        subject: Subject,
    ) -> Mapping[str, Lowered]:
        """What a graph holds for ``implementation``, bound, by part; ``subject`` is what a site like it is tried on."""
        placed = implementation.__dict__["placed"]
        if candidate.cls is candidate.task.interface and not placed:  # plain torch: nothing to try
            return {}

        holders = [c for c in (candidate, *(c for _, c in placed)) if c.cls is not c.task.interface]
        if self.lowering == "auto" and all(c.lowering == "inline" for c in holders):
            return {"": Lowered(forward=implementation.forward, kind="inline", reason="declared by the candidates")}

        def lowered(on: nn.Module, facts: Mapping[str, Any], example: Any, like: Any) -> dict[str, Lowered]:
            return lower_all(
                on,
                candidate=candidate,
                facts=facts,
                placed=on.__dict__["placed"],
                lowering=self.lowering,
                example=example,
                facts_of=lambda part, task: facts_of(task, *part.__dict__["constructed_with"]),
                like=like,
                tried=self._parts.setdefault((dtype, device), {}),
            )

        # Not by dtype: a module that was moved is bound again while Dynamo may be tracing, when nothing can be tried.
        key = (group, candidate.digest, candidate.label, tuple(path for path, _ in placed))
        if key not in self._sites:
            with subject as (module, tried, run, _):
                example = first_call(module, tried, run, dtype=dtype, device=device)
                on = run.__self__  # type: ignore[attr-defined] # the forward of an implementation: a bound method
                self._sites[key] = lowered(on, tried.facts, example, None)
            if on is implementation:
                return self._sites[key]
        return lowered(implementation, proposal.facts, None, self._sites[key])

    def close(self) -> None:
        for outcomes in (*self._sites.values(), *self._parts.values()):
            for outcome in outcomes.values():
                outcome.close()
