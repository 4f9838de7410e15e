"""Makes `nexent.monitor` and `utils.monitoring` importable where nobody else provides them.

A finder at the very end of `sys.meta_path`: whoever has a module of these names goes first. `nexent-observer.pth` installs it when
the interpreter starts; NEXENT_OBSERVER_ALIASES=off in the environment prevents it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Optional

_MODULES = ("nexent.monitor", "nexent.monitor.monitoring", "utils.monitoring", "backend.utils.monitoring")
# Packages on the way to them. Only an import of a module above may conjure one up: code that asks whether it has a package `utils`
# must go on getting the true answer.
_PACKAGES = ("nexent", "utils", "backend", "backend.utils")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname in _MODULES:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname == "nexent.monitor")
        if fullname in _PACKAGES and _leads_to_a_module(fullname):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ in _MODULES:
            import nexent_observer  # pylint: disable=import-outside-toplevel

            names = {name: getattr(nexent_observer, name) for name in nexent_observer.__all__}
            module.__dict__.update(names, __all__=list(names), __doc__=nexent_observer.__doc__)


def _leads_to_a_module(package: str) -> bool:
    """Whether the import under way, of which this package is a step, is one of a module above."""
    frame = sys._getframe(1)
    while frame is not None:
        # importlib imports the parents of a module from inside this function (Lib/importlib/_bootstrap.py).
        if frame.f_code.co_name in ("_find_and_load_unlocked", "_find_and_load"):
            name = frame.f_locals.get("name", "")
            if name in _MODULES and name.startswith(package + "."):
                return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def install() -> None:
    """Installs the finder, once."""
    if os.environ.get("NEXENT_OBSERVER_ALIASES", "").lower() == "off":
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
