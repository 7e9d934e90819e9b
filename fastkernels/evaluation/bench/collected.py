"""The outputs of a whole timed batch, in the parent's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastkernels.evaluation.bench.replies import Called, RunnerFailed
from fastkernels.evaluation.bench.shared import Place

if TYPE_CHECKING:
    from fastkernels.evaluation.bench.runner import Runner


class Collected:
    """The outputs of a whole batch in shared memory; the parent takes from it what it wants to see.

    Raises:
        RunnerFailed: FORGED where what the child ``told`` of them is nothing of the kind.
    """

    def __init__(self, runner: Runner, told: Any, outputs: Sequence[Sequence[Place]], seconds: float = 0.0) -> None:
        kinds, which = (told.get(key) if isinstance(told, dict) else None for key in ("kinds", "which"))
        if not isinstance(kinds, list) or not isinstance(which, list) or len(which) != len(outputs):
            raise RunnerFailed("FORGED", "its reply describes no outputs of a batch")
        self._runner, self._kinds, self._which, self._outputs = runner, kinds, which, outputs
        self.seconds = seconds  # that handing over took: on a CPU where the device is one, else by the clock

    def pick(self, call: int) -> Called:
        """What one call of the batch returned.

        Raises:
            RunnerFailed: FORGED where the child's description is none.
        """
        index = self._which[call]
        told = self._kinds[index] if isinstance(index, int) and 0 <= index < len(self._kinds) else None
        return self._runner.described(told, self._outputs[call])
