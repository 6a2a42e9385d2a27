"""Cells of the tables of docs/evidence.md: numbers, ranges and correlations as they are told."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def results(name: str) -> Any:
    """What a benchmark stored."""
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["results"]


def number(value: float) -> str:
    """Three digits.

    >>> number(0.04637), number(110.0), number(2.3e-7), number(math.inf), number(0.998)
    ('0.046', '110', '2.3e-07', 'never', '0.998')
    """
    if math.isinf(value):
        return "never"
    size = abs(value)
    if 0.01 <= size < 1:
        return f"{value:.3f}"
    return f"{value:.0f}" if size >= 100 or size == 0 else f"{value:.{2 if size < 1 else 3}g}"


def summary(values: Sequence[float | None]) -> str:
    """The median over seeds and their range; None is what was never reached.

    >>> summary([1.0, 1.2, 1.1]), summary([3.0, 3.0])
    ('1.1 (1 to 1.2)', '3')
    """
    known = [math.inf if v is None else v for v in values]
    least, most, middle = number(min(known)), number(max(known)), number(statistics.median(known))
    return middle if least == most else f"{middle} ({least} to {most})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |" for cells in lines
    )


def correlation(link: dict[str, Any] | None) -> str:
    """The correlation and its interval.

    >>> correlation({"rho": -0.861, "interval": [-0.9615, -0.5611], "runs": 20})
    '-0.86 [-0.96, -0.56]'
    """
    if link is None:
        return "–"
    low, high = link["interval"]
    return f"{link['rho']:+.2f} [{low:+.2f}, {high:+.2f}]"
