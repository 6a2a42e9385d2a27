"""Rows: what is said beside a measurement, or in place of one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from eqtoolbox.record.record import Record, Status
from eqtoolbox.watch.probe import Measurement, Probe


def noted(row: Measurement, said: str) -> Measurement:
    """A row that says this, too."""
    return replace(row, note="; ".join(filter(None, (row.note, said))))


def on_part(row: Measurement, said: str, count: int) -> Measurement:
    """A row that says on how many samples it was measured, if it does not yet."""
    if "samples_used" in row.facts:
        return row
    return replace(noted(row, said), facts={**row.facts, "samples_used": count})


def leaner_by(lean: Probe, probe: Probe) -> str:
    """The options in which a leaner probe differs, or what it is."""
    alike = hasattr(lean, "__dataclass_fields__") and type(lean) is type(probe)
    names = [f.name for f in fields(lean)] if alike else []  # type: ignore[arg-type]
    pairs = ((name, getattr(lean, name), getattr(probe, name)) for name in names)
    told = [f"{name}={own}" for name, own, known in pairs if own != known]
    return ", ".join(told) or type(lean).__name__


def in_place_of(probe: Probe, failed: Callable[[str, BaseException], object]) -> Probe | None:
    """What is measured where there is no room for a probe, as far as that says so."""
    try:
        other: object = probe.instead()
    except Exception as error:
        failed(probe.name, error)
        return None
    return other if isinstance(other, Probe) else None


def headline(probe: Probe, status: Status, note: str) -> Measurement:
    """The row that says why there is no number."""
    return Measurement(probe.headline, math.nan, status=status, note=note)


def ended(rows: list[Measurement], probe: Probe, status: Status, note: str) -> None:
    """Say why a measurement ended early: with its number where it has one, else in its place."""
    for k, row in enumerate(rows):
        if (row.quantity, row.target) == (probe.headline, ""):
            rows[k] = noted(row, f"other numbers are missing: {note}")
            return
    rows.append(headline(probe, status, note))


def answers(probe: Probe, rows: Sequence[Record]) -> bool:
    """Whether these records of a probe have its number."""
    said = f"{probe.name}/{probe.headline}"
    return any(row.name.startswith(said) and row.status in ("ok", "not_converged") for row in rows)
