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

ROOMS = {  # where the modules of a package of 0.1 are now; they have kept their last name
    "eqtoolbox": ("attach", "watch", "record", "replay", "command", "symmetry", "integrations"),
    "eqtoolbox.symmetry": (
        "symmetry.actions", "symmetry.groups", "weights.charges", "weights.orbit", "weights",
    ),
    "eqtoolbox.symmetry.families": ("weights.families",),
    "eqtoolbox.symmetry.search": ("weights.search", "weights.tracing"),
    "eqtoolbox.capture": ("watch.capture", "watch", "replay"),
}  # fmt: skip
PACKAGES = {
    "eqtoolbox.symmetry.families": "eqtoolbox.weights.families",
    "eqtoolbox.symmetry.search": "eqtoolbox.weights.search",
    "eqtoolbox.capture": "eqtoolbox.watch.capture",
}


def names(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package out of which names have moved into the modules given."""

    def moved(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _warn(f"{package}.{name}", f"{places[name]}.{name}")
        return getattr(importlib.import_module(places[name]), name)

    return moved


def place_of(old: str) -> str | None:
    """The module that one of 0.1 is now; None where there was none.

    Example:
        >>> place_of("eqtoolbox.sink")
        'eqtoolbox.record.sink'
    """
    package, _, name = old.rpartition(".")
    if old in PACKAGES:
        return PACKAGES[old]
    for room in ROOMS.get(package, ()):
        where = importlib.import_module(f"eqtoolbox.{room}").__path__
        if importlib.machinery.PathFinder.find_spec(f"eqtoolbox.{room}.{name}", where):
            return f"eqtoolbox.{room}.{name}"
    return None


def _warn(old: str, new: str) -> None:
    said = f"{old} is now {new}; the old path goes with eqtoolbox 0.3"
    warnings.warn(said, DeprecationWarning, stacklevel=3)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, for modules that nothing else finds."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("eqtoolbox.") or place_of(fullname) is None:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=fullname in PACKAGES)

    def exec_module(self, module: ModuleType) -> None:
        new = importlib.import_module(place_of(module.__name__) or "")
        module.__dict__["__getattr__"] = lambda name: getattr(new, name)
        module.__dict__["__dir__"] = lambda: dir(new)
        _warn(module.__name__, new.__name__)


sys.meta_path.append(_Finder())
