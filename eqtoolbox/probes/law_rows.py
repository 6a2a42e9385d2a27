"""Rows that the laws of parameter symmetries are told in."""

import math
from collections.abc import Iterator, Sequence

from eqtoolbox.record.record import verdict
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.weights.parameter import ContinuousSymmetry


def resting(family: str) -> Iterator[Measurement]:
    """What is said of a family that moves nothing here, such as a zero head's scale."""
    note = "the parameters that the family moves are zero: its generators vanish"
    for quantity in ("first_order", "second_order"):
        yield Measurement(quantity, math.nan, family, status="not_applicable", note=note)


def residual(quantity: str, family: str, value: float, floor: float, matvecs: int) -> Measurement:
    return Measurement(
        quantity, value, family, floor=floor, verdict=verdict(value, floor), matvecs=matvecs
    )


def dimension(family: str, members: Sequence[ContinuousSymmetry]) -> Iterator[Measurement]:
    note = "; ".join(f"{m.name}: {m.dimension} {m.status} {m.residual:.1e}" for m in members)
    total = sum(m.dimension for m in members)
    facts = {"equivariant": True} if any(m.equivariant for m in members) else {}
    yield Measurement("dimension", float(total), family, note=note, facts=facts)


def known_of(members: Sequence[ContinuousSymmetry], first: float) -> float:
    """How far approximate symmetries fail where nothing predicts it.

    At least their residual when found; a normalisation's epsilon breaks the second-order law three
    times as much as the first (w.g = 2k gives w^T H w = -6k), and more as the weights shrink.
    """
    return max(*(m.residual for m in members if m.status == "approximate"), 3 * first)
