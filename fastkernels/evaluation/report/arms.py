"""What the arms are called in a report."""

from __future__ import annotations

from fastkernels.evaluation.e2e.result import ArmName

NAMES: dict[ArmName, str] = {"baseline": "baseline", "null": "null arm", "candidate": "candidate"}
