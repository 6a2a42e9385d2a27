"""eqtoolbox: see how a network learns through its symmetries, while it trains.

What is named here is imported when it is asked for: who only reads runs does not wait for torch.
(PYTEST_DONT_REWRITE: pytest may be started after this import without a warning.)
"""

import gc
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import eqtoolbox.moved as _moved  # noqa: F401  (finds the paths of older versions)

if TYPE_CHECKING:
    from eqtoolbox import act, enforce, linalg, symmetry, weights
    from eqtoolbox.attach.attach import attach
    from eqtoolbox.choose.suggesting import suggest
    from eqtoolbox.record.record import Record
    from eqtoolbox.record.schedule import at, every, log_spaced
    from eqtoolbox.record.sink import Sink
    from eqtoolbox.report.run import Run
    from eqtoolbox.watch.monitor import Monitor
    from eqtoolbox.watch.probe import Measurement, Probe, Scheduled
    from eqtoolbox.watch.snapshot import NotApplicable, Snapshot

__version__ = "0.1.0"

__all__ = [
    "Measurement",
    "Monitor",
    "NotApplicable",
    "Probe",
    "Record",
    "Run",
    "Scheduled",
    "Sink",
    "Snapshot",
    "act",
    "at",
    "attach",
    "enforce",
    "every",
    "linalg",
    "log_spaced",
    "suggest",
    "symmetry",
    "weights",
]

_HOMES = {
    "attach.attach": "attach",
    "choose.suggesting": "suggest",
    "record.record": "Record",
    "record.schedule": "at every log_spaced",
    "record.sink": "Sink",
    "report.run": "Run",
    "watch.monitor": "Monitor",
    "watch.probe": "Measurement Probe Scheduled",
    "watch.snapshot": "NotApplicable Snapshot",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}


class _Package(ModuleType):
    """`eqtoolbox.attach` is the function, also once the package of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "attach" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        collecting = gc.isenabled()
        gc.disable()  # a full collection amid imports walks through all of torch, as long again
        try:
            if name not in _HOME:
                return importlib.import_module(f"{__name__}.{name}")
            found = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        finally:
            if collecting:
                gc.enable()
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
