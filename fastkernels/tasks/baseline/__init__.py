"""Import path of the public FastKernels benchmark: ``fastkernels.tasks.baseline.L1.rms_norm`` is our task module.

Candidates written for that benchmark import its baselines from here; the finder lives only once one does."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence

PREFIX = f"{__name__}."


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(PREFIX):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname.count(".") == PREFIX.count("."))

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        from fastkernels.tasks.registry import task_for_stem

        level, _, stem = spec.name.removeprefix(PREFIX).partition(".")
        if not stem:
            package = types.ModuleType(spec.name)
            package.__path__ = []
            return package
        task = task_for_stem(int(level[1:]), stem) if level[1:].isdigit() else None
        if task is None:
            raise ModuleNotFoundError(f"{spec.name}: this library has no task for {level}/{stem}", name=spec.name)
        module = types.ModuleType(spec.name)
        real = importlib.import_module(task.interface.__module__)
        module.__dict__.update({k: v for k, v in vars(real).items() if not k.startswith("__")})
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run: the names are already there."""


if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
    sys.meta_path.append(_Alias())
