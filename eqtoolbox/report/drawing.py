"""Drawing: colours, and numbers as the figures take them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.report.words import raised

# Mid-tones: contrast of at least 3.3 on the light and on the dark page.
PALETTE = (
    "#3f7fc1", "#d2603a", "#34936a", "#8d6fc0", "#b0831c", "#2594a0", "#c65d92", "#7a8a2e",
    "#8a7160", "#5b7bd6", "#a2708a", "#4e8f4a",
)  # fmt: skip
GREY = "#7d8590"
WIDE = 20.0  # ratio of the largest to the smallest value from which an axis is logarithmic
POINTS = 1500  # a trace; a panel is at most about a thousand pixels wide


def thinned(values: NDArray[np.float64], limit: int = POINTS) -> NDArray[np.int64]:
    """Indices of at most about `limit` values that keep the extremes of every stretch.

    Example:
        >>> spike = np.zeros(10_000); spike[1234] = 1.0
        >>> kept = thinned(spike, 100)
        >>> len(kept) <= 102, 1234 in kept
        (True, True)
    """
    if len(values) <= limit:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), limit // 2):
        kept |= {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
    return np.array(sorted(kept), dtype=np.int64)


def wide(values: NDArray[np.float64]) -> bool:
    """Whether values ask for a logarithmic axis: positive, the largest `WIDE` times the smallest.

    Example:
        >>> wide(np.array([0.1, 3.0])), wide(np.array([0.0, 3.0]))
        (True, False)
    """
    return bool(len(values) and values.min() > 0 and values.max() > WIDE * values.min())


def plain(values: NDArray[Any]) -> list[float | None]:
    """Values as JSON numbers of six digits; what is not finite becomes null."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values.tolist()]


def faded(colour: str, opacity: float) -> str:
    """A hexadecimal colour with an opacity, as plotly writes it.

    Example:
        >>> faded("#ff8000", 0.5)
        'rgba(255,128,0,0.5)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:.2g})"


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks of a logarithmic axis: powers of ten, at most seven; 2 and 5 too on a short axis.

    Example:
        >>> [label for _, label in ticks(3e-8, 2e-5)]
        ['10⁻⁸', '10⁻⁷', '10⁻⁶', '10⁻⁵', '10⁻⁴']
    """
    bottom, top = math.log10(low), math.log10(high)
    stride = max(1, math.ceil((top - bottom) / 6))
    digits = (1, 2, 5) if top - bottom < 1.5 else (1,)
    first = math.floor(bottom) - math.floor(bottom) % stride
    powers = range(first, math.ceil(top) + stride, stride)
    return [(float(f"{d}e{p}"), power_of_ten(d, p)) for p in powers for d in digits]


def power_of_ten(digit: int, power: int) -> str:
    """A tick label: plain near one, a power elsewhere.

    Example:
        >>> power_of_ten(1, -7), power_of_ten(2, -8), power_of_ten(5, -1)
        ('10⁻⁷', '2·10⁻⁸', '0.5')
    """
    if -3 < power < 4:
        return f"{float(f'{digit}e{power}'):g}"
    ten = f"10{raised(power)}"
    return ten if digit == 1 else f"{digit}·{ten}"
