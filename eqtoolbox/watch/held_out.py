"""Held out: a probe of the model alone, measured on a batch that the model does not train on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from eqtoolbox.record.record import Mode
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import Snapshot

PREFIX = "validation."


@dataclass(frozen=True, kw_only=True)
class HeldOut(Probe):
    """Another probe under a name of its own, so that what it remembers is of these batches only."""

    mode: ClassVar[Mode] = "eval"
    probe: Probe

    def __post_init__(self) -> None:
        for name in ("headline", "graphs", "copies"):
            object.__setattr__(self, name, getattr(self.probe, name))
        object.__setattr__(self, "name", PREFIX + self.probe.name)

    def reference(self, snapshot: Snapshot, rng: torch.Generator) -> Any:
        return self.probe.reference(snapshot, rng)

    def restored(self, saved: Any) -> Any:
        return self.probe.restored(saved)

    def measure(
        self, snapshot: Snapshot, reference: Any, rng: torch.Generator
    ) -> Iterable[Measurement]:
        return self.probe.measure(snapshot, reference, rng)


def held_out(probes: Iterable[Probe]) -> list[Probe]:
    """Those that measure the model in evaluation mode, which needs no step, as `HeldOut`.

    Example:
        >>> held_out([])
        []
    """
    return [HeldOut(probe=probe) for probe in probes if probe.mode == "eval" and probe.evaluates]
