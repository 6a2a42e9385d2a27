"""Secondary quantities: what a probe measures beside its headline, and may fail by itself."""

import math
from collections.abc import Iterable, Iterator

from eqtoolbox.record.record import Status
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable

LACKING = (ArithmeticError, LookupError, ValueError, NotImplementedError, NotApplicable)


def secondary(rows: Iterable[Measurement], *quantities: str) -> Iterator[Measurement]:
    """Rows of these quantities; where they end early, why, under the name of each that is missing.

    What ends the probe as a whole goes on: memory that was short, its time, what leaves a trace.

    Example:
        >>> list(secondary((Measurement("share", 1.0 / n) for n in (0,)), "share"))[0].note
        'float division by zero'
    """
    found = set()
    try:
        for row in rows:
            found.add(row.quantity)
            yield row
    except LACKING as reason:
        status: Status = (
            "non_finite" if isinstance(reason, FloatingPointError) else "not_applicable"
        )
        note = str(reason) or type(reason).__name__
        for quantity in quantities:
            if quantity not in found:
                yield Measurement(quantity, math.nan, status=status, note=note)
