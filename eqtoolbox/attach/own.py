"""A probe of the user's own: the class that the head of a table names, or what stands for it."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from eqtoolbox.attach.source import named, split
from eqtoolbox.attach.toml import ConfigError
from eqtoolbox.expect.words import shown
from eqtoolbox.record.record import Mode
from eqtoolbox.watch.probe import Measurement, Probe, undeclared
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot


def probe_class(reference: str, source: str, where: str) -> type[Probe]:
    """The class that a reference in a file stands for; the code that it names is run.

    Args:
        reference: "file.py:NAME" beside the file, or "package.module:NAME".
        source: that file.
        where: file and table, for messages.

    Raises:
        ConfigError: no such file, module or name, or it is no whole probe; says the remedy.
    """
    found = named(reference, Path(source).parent, where)
    if not (isinstance(found, type) and issubclass(found, Probe)):
        hint = "name its class, and its options in the table" if isinstance(found, Probe) else ""
        hint = hint or "write class NAME(eqtoolbox.Probe)"
        raise ConfigError(f"{where}: expected a subclass of Probe, got {shown(found)}; {hint}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError(f"{where}: expected a probe with a method {missing}, got one without")
    if lacks := undeclared(found):
        raise ConfigError(f"{where}: {lacks}")
    return found


@dataclass(frozen=True, kw_only=True)
class NotImported(Probe):
    """What stands for a probe whose code was not run: good for being printed, not for measuring."""

    headline: ClassVar[str] = "nothing"
    mode: ClassVar[Mode] = "train"
    lightens: ClassVar[bool] = True  # for all that is known

    place: str  # the reference
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)  # as given, unchecked

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.place} (not imported)"

    def measure(
        self, snapshot: Snapshot, reference: Any, rng: torch.Generator
    ) -> Iterator[Measurement]:
        raise NotApplicable(f"{self.place} was not imported")


def not_imported(reference: str, options: Mapping[str, Any], where: str) -> NotImported:
    """The stand-in of a reference, which is looked at for its form only.

    Raises:
        ConfigError: it has not the form of one.
    """
    split(reference, where)
    return NotImported(place=reference, options=options)


def place_of(probe: Probe) -> str:
    """Where the class of a probe that is not ours was written: "file.py:NAME"; empty for ours."""
    kind = type(probe)
    if kind.__module__.startswith("eqtoolbox."):
        return ""
    code = getattr(inspect.unwrap(kind.measure), "__code__", None)
    return f"{code.co_filename if code else kind.__module__}:{kind.__qualname__}"
