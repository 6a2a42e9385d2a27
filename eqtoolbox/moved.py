"""Moved: import paths of 0.1, which lead to where things are now, with a warning, until 0.3."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

_ROOMS = {
    "attach": ("config", "source"),
    "watch": ("monitor", "probe", "snapshot", "budget", "journal"),
    "record": ("sink", "schedule", "arrays"),
    "replay": ("objective", "isolation", "reading"),
    "command": ("cli",),
    "symmetry": ("audit", "testing"),
}
_SYMMETRY = {
    "symmetry.actions": (
        "linear", "permuting", "fields", "resampling", "boosts", "scaling", "alike", "tangent",
        "foreign",
    ),
    "symmetry.groups": ("group", "finite", "matrices", "unbounded", "irregular"),
    "weights": ("parameter", "discovery", "epsilon"),
    "weights.charges": ("charges",),
}  # fmt: skip
MODULES = {
    **{f"eqtoolbox.{n}": f"eqtoolbox.{room}.{n}" for room, names in _ROOMS.items() for n in names},
    **{
        f"eqtoolbox.symmetry.{n}": f"eqtoolbox.{room}.{n}"
        for room, names in _SYMMETRY.items()
        for n in names
    },
    "eqtoolbox.report.panels": "eqtoolbox.report.sections",
}


def names(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package out of which names have moved into the modules given."""

    def moved(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _warn(f"{package}.{name}", f"{places[name]}.{name}")
        return getattr(importlib.import_module(places[name]), name)

    return moved


def _warn(old: str, new: str) -> None:
    warnings.warn(
        f"{old} is now {new}; the old path goes with eqtoolbox 0.3",
        DeprecationWarning,
        stacklevel=3,
    )


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, for modules that nothing else finds."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MODULES:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        new = importlib.import_module(MODULES[module.__name__])
        module.__dict__["__getattr__"] = lambda name: getattr(new, name)
        module.__dict__["__dir__"] = lambda: dir(new)
        _warn(module.__name__, new.__name__)


sys.meta_path.append(_Finder())
