"""Drawing: colours and dashes, and numbers as the figures take them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.report.words import number, plural, raised, typeset

# On each page a contrast of 3 and more; told apart with any of the three kinds of colour blindness,
# by lightness where not by hue, and by the dash that each colour has.
PALETTE = ("#2191eb", "#992509", "#3a7f6e", "#52164c", "#9d9023", "#093799")
DARK = ("#4579ee", "#df6b0e", "#7fe3c8", "#985582", "#f0d34a", "#a9bff5")  # the same in the dark
DASHES = ("solid", "9px,3px", "10px,3px,2px,3px", "5px,3px", "16px,4px", "14px,3px,2px,3px,2px,3px")
GREY = "#7d8590"
WIDE = 20.0  # ratio of the largest to the smallest value from which an axis is logarithmic
EXTREME = 1.5  # ratio of the whole span to the usual one from which the extremes are left out
FAR = 30.0  # times a floor from which lines leave it undrawn: empty decades would say no more
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


def usual(lines: Sequence[Sequence[float | None]], share: float = 0.95) -> dict[str, Any]:
    """A range for an axis that leaves out the extremes, where these would squeeze all others.

    Args:
        lines: heights of all lines.
        share: of the heights that the range holds at least.

    Example:
        >>> usual([[0.9, 1.0] * 50 + [40.0]])["range"]
        [-0.08, 1.08]
        >>> usual([[0.9, 1.0]])
        {}
    """
    heights = np.array([y for line in lines for y in line if y is not None])
    low, high = np.quantile(heights, [(1 - share) / 2, (1 + share) / 2]) if heights.size else (0, 0)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    span = max(float(heights.max(initial=0.0)), 0.0) - min(float(heights.min(initial=0.0)), 0.0)
    if span <= EXTREME * (high - low):
        return {}
    room = 0.08 * (high - low)
    return {"range": [low - room, high + room]}


def far_below(lowest: float, floor: float, suffix: str = "") -> dict[str, Any] | None:
    """A note of a floor that is so far below all lines that it is not drawn; None where it is near.

    Example:
        >>> far_below(0.1, 2e-7)["text"], far_below(1e-6, 2e-7)
        ('↓ noise floor 2·10⁻⁷, 5 decades below', None)
    """
    if not 0 < FAR * floor < lowest:
        return None
    below = plural(math.floor(math.log10(lowest / floor)), "decade")
    return {
        "text": typeset(f"↓ noise floor {number(floor, 2)}{suffix}, {below} below"),
        "xref": "paper", "yref": "paper", "x": 1, "y": 0, "xanchor": "right",
        "yanchor": "bottom", "showarrow": False, "font": {"size": 11, "color": GREY},
    }  # fmt: skip


def faded(colour: str, opacity: float) -> str:
    """A hexadecimal colour with an opacity, as plotly writes it.

    Example:
        >>> faded("#ff8000", 0.5)
        'rgba(255,128,0,0.5)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:.2g})"


def dash(colour: str) -> str:
    """The dash of a colour of the palette, as plotly writes it; others are solid.

    Example:
        >>> dash(PALETTE[0]), dash(PALETTE[1]), dash(GREY)
        ('solid', '9px,3px', 'solid')
    """
    return DASHES[PALETTE.index(colour)] if colour in PALETTE else "solid"


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks of a logarithmic axis: powers of ten, at most seven; 2 and 5 too on a short axis.

    Example:
        >>> [label for _, label in ticks(3e-8, 2e-5)]
        ['10⁻⁸', '10⁻⁷', '10⁻⁶', '10⁻⁵', '10⁻⁴']
        >>> [label for at, label in ticks(0.17, 5.5) if 0.17 < at < 5.5]
        ['0.2', '0.5', '1', '2', '5']
    """
    bottom, top = math.log10(low), math.log10(high)
    stride = max(1, math.ceil((top - bottom) / 6))
    digits = (1, 2, 5) if top - bottom < 2 else (1,)
    first = math.floor(bottom) - math.floor(bottom) % stride
    powers = range(first, math.ceil(top) + stride, stride)
    return [(float(f"{d}e{p}"), power_of_ten(d, p)) for p in powers for d in digits]


def power_of_ten(digit: int, power: int) -> str:
    """A tick label: plain near one, a power elsewhere.

    Example:
        >>> power_of_ten(1, -7), power_of_ten(2, -8), power_of_ten(5, -1)
        ('10⁻⁷', '2·10⁻⁸', '0.5')
    """
    if -4 < power < 4:
        return f"{float(f'{digit}e{power}'):g}"
    ten = f"10{raised(power)}"
    return ten if digit == 1 else f"{digit}·{ten}"
