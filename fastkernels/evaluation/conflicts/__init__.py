"""The compile-stack conflict matrix of a candidate."""

from fastkernels.evaluation.conflicts.code import Code
from fastkernels.evaluation.conflicts.codes import CODES
from fastkernels.evaluation.conflicts.report import Cell, ConflictReport
from fastkernels.evaluation.conflicts.run import conflicts

__all__ = ["CODES", "Cell", "Code", "ConflictReport", "conflicts"]
