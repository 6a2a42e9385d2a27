"""Summing: few numbers that stand for many, as the facts of a record hold them."""

import math
from typing import Any

import numpy as np
from torch import Tensor

DRAWN = 16  # layers whose numbers facts hold, evenly over the depth
LOOKED_AT = 2**22  # numbers of an output whose size and spread are looked at


def spread(rows: Tensor) -> tuple[float, float, float]:
    """Mean size, mean standard deviation over rows, largest size; of many columns some millions."""
    low, high = rows.aminmax()
    some = rows[:, :: max(1, math.ceil(rows.numel() / LOOKED_AT))].double()
    return float(some.abs().mean()), float(some.std(0).mean()), max(-float(low), float(high))


def evenly(of_layers: dict[str, list[Any]]) -> dict[str, Any]:
    """The same lists of as many layers as facts hold, the first and the last among them."""
    count = len(of_layers["layers"])
    kept = np.unique(np.linspace(0, count - 1, min(count, DRAWN)).round().astype(int))
    return {name: [values[i] for i in kept] for name, values in of_layers.items()}


def finite(fact: Any) -> bool:
    """Whether a fact holds no NaN or infinity."""
    several = fact if isinstance(fact, list | tuple) else [fact]
    return all(not isinstance(x, float) or math.isfinite(x) for x in several)
