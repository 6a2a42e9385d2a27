"""Bins: histograms whose edges are spaced by factors on both sides of zero."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 64
DECADES = 6.0  # from the largest magnitude down to the two bins around zero


def edges(largest: float) -> NDArray[np.float64]:
    """Symmetric-logarithmic edges: 0 in the middle, equal factors from `largest` outward and down.

        e_k = largest 10^(-6 (31 - k) / 31) for k = 0 ... 31, with their negatives and 0

    Args:
        largest: magnitude of the outermost edges, > 0; 1 is taken where it is no such number.

    Returns:
        shape (65,), increasing.

    Example:
        >>> e = edges(10.0)
        >>> len(e), float(e[0]), float(e[32]), round(float(e[33]), 9), float(e[-1])
        (65, -10.0, 0.0, 1e-05, 10.0)
    """
    top = largest if np.isfinite(largest) and largest > 0 else 1.0
    ladder = np.linspace(-DECADES, 0.0, BINS // 2)
    right = top * 10.0**ladder
    return np.concatenate([-right[::-1], [0.0], right])


def packed(counts: NDArray[Any], at: NDArray[Any]) -> NDArray[np.float64]:
    """A histogram as one array: the edges in the first row, counts and a 0 in the second.

    Args:
        counts: (64,).
        at: (65,).
    """
    return np.stack([np.asarray(at, np.float64), np.append(np.asarray(counts, np.float64), 0.0)])


def histogram(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts and edges of the finite ones among `values`, or of what was `packed`.

    Args:
        values: numbers of any shape; or (2, 65) as `packed` returns it.

    Returns:
        counts (64,) and edges (65,).

    Example:
        >>> counts, at = histogram(np.array([-2.0, 0.0, 1.0, np.nan]))
        >>> float(counts.sum()), float(at[-1])
        (3.0, 2.0)
    """
    array = np.asarray(values, np.float64)
    if array.shape == (2, BINS + 1):
        return array[1, :-1], array[0]
    finite = array[np.isfinite(array)]
    at = edges(float(np.abs(finite).max()) if finite.size else 0.0)
    counts, _ = np.histogram(finite, at)
    return counts.astype(np.float64), at
