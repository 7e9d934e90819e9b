"""Tasks: what a module must compute, apart from where a model computes it and how a candidate does."""

from fastkernels.tasks.interface import Interface
from fastkernels.tasks.registry import all_tasks, by_interface, get_task, task_for_stem
from fastkernels.tasks.task import Case, Cost, Task

__all__ = ["Case", "Cost", "Interface", "Task", "all_tasks", "by_interface", "get_task", "task_for_stem"]
