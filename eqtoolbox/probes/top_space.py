"""The top space: the sharpest directions, from which the next search for them goes on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from eqtoolbox.linalg import EigenResult
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.state import State

QUICK = 3  # searches in a row that go on from the last one without a fresh chain


@dataclass(kw_only=True, eq=False)
class TopSpace(State):
    """The sharpest directions at the last measurement, for `angles` and for `reuse`."""

    large: ClassVar[bool] = True
    top: Sequence[Parameters] | None = None
    vectors: list[Parameters] = field(default_factory=list)
    guard: Parameters | None = None
    quick: int = 0  # searches since the last one that was confirmed
    felt: list[Parameters] = field(default_factory=list)  # the sharpest in the optimizer's metric
    felt_quick: int = 0  # searches in it since the last one that was confirmed


def quickly(found: EigenResult, before: int) -> int:
    """Searches since one that was confirmed; after one that was cut short the next one is."""
    return 0 if found.confirmed else before + 1 if bool(found.converged.all()) else QUICK
