"""Packages that a GPU box has and these tests do not need, in the place of the real ones."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types


class AbsentPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last in `sys.meta_path`: an installed package wins. Every attribute is an empty class."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in self.names:
            return None
        if name != top and not isinstance(sys.modules.get(top), _Absent):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Absent(spec.name)

    def exec_module(self, module):
        pass


class _Absent(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
