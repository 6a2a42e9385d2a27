"""The fastest of several ways to the same product, by timing them on the model at hand."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from eqtoolbox.linalg.vectors import Vector, add, norm

T = TypeVar("T")
CLEARLY = 0.85  # of the time that another way takes: what noise does not explain
LOADING = 0.3  # seconds that torch takes to load its forward derivatives, once a program
ROUNDING = 1e-4  # relative; by which float32 products of two ways may differ
CANNOT = (RuntimeError, TypeError, ValueError, NotImplementedError, FloatingPointError)


def timed(product: Callable[[Vector], T], v: Vector) -> tuple[T, float]:
    """A product with the seconds it takes, the device's own included."""
    _wait(v)
    started = time.perf_counter()
    made = product(v)
    _wait(v)
    return made, time.perf_counter() - started


def worth_asking(v: Vector, seconds: float) -> bool:
    """Whether products that take so long may be had faster by a way that has to be loaded first.

    On a CPU one that is slower at once is not taken, and what is loaded counts at once.

    Example:
        >>> worth_asking({"x": torch.ones(2)}, 0.01), worth_asking({"x": torch.ones(2)}, 10.0)
        (False, True)
    """
    return _device(v) != "cpu" or seconds > LOADING


def faster(
    other: Callable[[Vector], Vector],
    known: Callable[[Vector], Vector],
    v: Vector,
    product: Vector,
    seconds: float,
    rounding: float = ROUNDING,
) -> bool:
    """Whether another way to a product is clearly faster, and the same but for rounding.

    One that is slower at once is asked once, on a CPU; on devices first calls load kernels. One
    that seems faster has to be so twice, against the known way's best: a noisy machine decides
    nothing.

    Args:
        other: the way in question; one that raises cannot.
        known: the way that would be taken otherwise.
        v, product, seconds: a vector, its product by the known way, and what that took.
        rounding: relative difference of the products that is none.
    """
    try:
        found, took = timed(other, v)
        if not norm(add(product, found, -1.0)) <= rounding * norm(product):
            return False
        if _device(v) == "cpu" and took > seconds:
            return False
        took = min(timed(other, v)[1] for _ in range(2))
    except CANNOT:
        return False
    if took > CLEARLY * seconds:
        return False
    known(v)
    return took <= CLEARLY * min(seconds, timed(known, v)[1])


def _device(v: Vector) -> str:
    return next(iter(v.values())).device.type


def _wait(v: Vector) -> None:
    if _device(v) != "cpu":
        torch.accelerator.synchronize(next(iter(v.values())).device)
