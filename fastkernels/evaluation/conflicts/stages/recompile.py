"""recompile: once compiled and warm, calls of the same shapes on fresh buffers must reuse the graph."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch._dynamo

from fastkernels.evaluation.conflicts.capture import Uncapturable, compiled
from fastkernels.evaluation.conflicts.compare import warm
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Subject

CALLS = 4


def check_recompile(subject: Subject) -> Iterator[Finding]:
    """Two eager calls settle what is built lazily; then one compiling call, and ``CALLS`` that must not compile."""
    for call in subject.calls(rows=[8]):
        module = subject.build(call)
        for seed in (90, 91):
            warm(module, subject.draw(call, seed=seed))
        kept = [subject.draw(call, seed=seed) for seed in range(CALLS + 1)]  # all alive: every address is new
        function = compiled(module, "eager")
        try:
            with torch.no_grad():
                function(*kept[0])
        except Uncapturable as error:
            raise Skip(f"not captured: {error}") from error
        try:
            with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
                for arguments in kept[1:]:
                    function(*arguments)
        except (Uncapturable, torch._dynamo.exc.RecompileError) as error:
            evidence = error.evidence if isinstance(error, Uncapturable) else frame_of(error)
            yield Finding(code="RC_PY_STATE", bucket=str(call), evidence=evidence)
