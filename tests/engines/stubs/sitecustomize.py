"""Stand-ins for packages that SGLang imports by name and does not use in these tests; on PYTHONPATH, Python loads this
file first. They have no CPU build that fits beside torch's, or are large."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types

ABSENT = ("IPython", "sgl_kernel", "torchvision", "xgrammar")


class Anything(type):
    """Classes with any attribute, for enumerations."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __get_pydantic_core_schema__(cls, source, handler):
        return {"type": "any"}


class Absent(types.ModuleType):
    """A package with any name in it, and any module."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {"__module__": self.__name__})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Absent(spec.name)

    def exec_module(self, module):
        module.__version__ = "0"


sys.meta_path.append(Finder())  # last: a real package is found before
