"""Rows: what is said beside a measurement, or in place of one."""

import math
from dataclasses import fields, replace

from eqtoolbox.record.record import Status
from eqtoolbox.watch.probe import Measurement, Probe


def noted(row: Measurement, said: str) -> Measurement:
    """A row that says this, too."""
    return replace(row, note="; ".join(filter(None, (row.note, said))))


def on_part(row: Measurement, said: str, count: int) -> Measurement:
    """A row that says on how many samples it was measured."""
    return replace(noted(row, said), facts={**row.facts, "samples_used": count})


def options_of(lean: Probe, probe: Probe) -> str:
    """The options in which a leaner probe differs."""
    own = ((f.name, getattr(lean, f.name)) for f in fields(lean))  # type: ignore[arg-type]
    return ", ".join(f"{name}={value}" for name, value in own if value != getattr(probe, name))


def headline(probe: Probe, status: Status, note: str) -> Measurement:
    """The row that says why there is no number."""
    return Measurement(probe.headline, math.nan, status=status, note=note)
