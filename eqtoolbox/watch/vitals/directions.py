"""Directions: how far apart outputs point that the loss or the model divides by their length.

Such a loss does not see lengths: outputs that differ in length alone are one and the same to it.
"""

import math
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from eqtoolbox.linalg.vectors import wide
from eqtoolbox.watch.vitals.storage import place
from eqtoolbox.watch.vitals.summing import LOOKED_AT

KEPT = 4  # divided tensors: two views of a batch, each before and behind a predictor
_SAME = ("clamp", "clamp_min", "maximum", "clone", "_to_copy", "add")  # a guard against 0, a copy
_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}


def direction_spread(x: Tensor, dim: int = -1) -> float:
    """How far apart the directions of samples are: the trace of the covariance of u = x / |x|.

    n / (n - 1) (1 - |mean u|²), the mean of 1 - cos(x, y) over all pairs of n samples. 0: all point
    in one direction; 1: in directions that have nothing to do with each other, as of random ones.
    Samples that are 0 have no direction and are left out.

    Args:
        x: samples of any shape (..., features, ...); of many, some millions of numbers are looked
            at.
        dim: the dimension of the features.

    Returns:
        A number from 0 to n / (n - 1); NaN of fewer than two samples.

    Reference:
        Wang & Isola 2020 (2005.10242), uniformity on the sphere; Mardia & Jupp 2000, Directional
        Statistics, 9.2 (1 - |mean u| is the spherical variance).

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.1, 0.0]])
        >>> round(direction_spread(x), 6), round(direction_spread(torch.eye(4)), 6)
        (0.0, 1.0)
    """
    rows = x.detach().movedim(dim, -1)
    for axis in range(rows.dim() - 1):
        if rows.stride(axis) == 0:  # as where all are compared with all: the same sample again
            rows = rows.narrow(axis, 0, 1)
    rows = rows.flatten(0, -2)
    rows = wide(rows[:: max(1, math.ceil(rows.numel() / LOOKED_AT))])
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    some = (lengths > 0).squeeze(-1)
    units = rows[some] / lengths[some]
    return float(units.var(0).sum()) if len(units) > 1 else math.nan


@dataclass(frozen=True)
class Length:
    """A power of the lengths of the samples of a tensor, or of the product of those of two."""

    of: tuple[int, ...]  # the storages of these tensors
    dim: int  # along which they were summed, from the last one, which is -1
    power: float
    held: Tensor  # itself: what else is made meanwhile lies elsewhere


@dataclass(frozen=True)
class Divided:
    """A tensor that was divided by its length."""

    x: Tensor  # of what a model divides the result, which it may give out
    dim: int


class Directions:
    """What an evaluation of the loss divides by its length, in the order in which it did.

    Outputs of the model count, and what it divides itself and gives out; without any, what the loss
    makes of outputs, as of two views that it joins, and samples (N, features) of a model that gives
    out its loss alone. Layers that divide within the model, and weights, do not.
    """

    def __init__(self) -> None:
        self._lengths: dict[int, Length] = {}  # by their storage
        self._square: tuple[int, int] | None = None  # of the last operation: where, and of what
        self._outputs: dict[int, Tensor] = {}
        self._inside = False  # the model
        self._inner: deque[Divided] = deque(maxlen=KEPT)
        self._own: deque[Divided] = deque(maxlen=KEPT)  # of outputs
        self._other: deque[Divided] = deque(maxlen=KEPT)

    def begin(self) -> None:
        """The model is called."""
        self._inside = True
        self._inner.clear()

    def end(self, given: Iterable[Tensor]) -> None:
        """The model gave this out."""
        outputs = {place(x): x for x in given}
        self._outputs.update(outputs)
        self._own += [d for d in self._inner if place(d.x) in outputs]
        if outputs and not any(x.dim() for x in outputs.values()):  # its own loss
            self._other += [d for d in self._inner if d.x.dim() == 2]
        self._inside = False
        self._inner.clear()

    def note(self, name: str, given: dict[str, Any], result: Any, weights: Collection[int]) -> None:
        """Note an operation, if it makes lengths or divides by them.

        Args:
            name: of the operation.
            given: its arguments.
            result: what it gave.
            weights: storages of parameters, which are no samples.
        """
        square, self._square = self._square, None
        x, dims, plain = given.get("self"), given.get("dim"), name.removesuffix("_")
        if not _dense(x) or not _dense(result):
            return
        if name == "linalg_vector_norm":
            if _is_two(given.get("ord", 2)):
                self._measured(x, place(x), dims, 1.0, result)
        elif (name == "pow" and _is_two(given["exponent"])) or (
            name == "mul" and given["other"] is x
        ):
            self._square = place(result), place(x)
        elif name == "sum" and square is not None and square[0] == place(x):
            self._measured(x, square[1], dims, 2.0, result)
        elif plain in _SAME or plain in _POWERS:
            known = self._lengths.get(place(x))
            if known is not None:
                power = known.power * _POWERS.get(plain, 1.0)
                self._lengths[place(result)] = Length(known.of, known.dim, power, result)
        elif plain == "div" and _dense(given["other"]):
            self._divided(x, given["other"], 1.0, result, weights)
        elif plain == "mul" and _dense(given["other"]):
            self._multiplied(x, given["other"], result)
            self._divided(x, given["other"], -1.0, result, weights)
            self._divided(given["other"], x, -1.0, result, weights)

    def _measured(self, x: Tensor, of: int, dims: Any, power: float, result: Tensor) -> None:
        """Keep what was summed over the features: one dimension, not the first of several."""
        if isinstance(dims, list | tuple) and len(dims) == 1 and x.dim() > 1:
            dim = int(dims[0]) % x.dim()
            if dim:
                self._lengths[place(result)] = Length((of,), dim - x.dim(), power, result)

    def _multiplied(self, one: Tensor, other: Tensor, result: Tensor) -> None:
        """Keep the product of two lengths, by which products of samples are divided."""
        a, b = self._lengths.get(place(one)), self._lengths.get(place(other))
        if a is not None and b is not None and (a.dim, a.power) == (b.dim, b.power):
            self._lengths[place(result)] = Length(a.of + b.of, a.dim, a.power, result)

    def _divided(
        self, x: Tensor, by: Tensor, power: float, result: Tensor, weights: Collection[int]
    ) -> None:
        known, here = self._lengths.get(place(by)), place(x)
        if known is None or known.power != power:
            return
        if len(known.of) > 1:
            found = (self._outputs[of] for of in known.of if of in self._outputs)
            self._own += [Divided(y, known.dim) for y in found if y.dim() >= -known.dim]
        elif known.of == (here,) and here not in weights:
            if self._inside:
                self._inner.append(Divided(result, known.dim))
            else:
                own = self._own if here in self._outputs else self._other
                own.append(Divided(x, known.dim))

    def told(self, batch: Iterable[Tensor] = ()) -> "Directed | None":
        """How far apart what was divided points; None where nothing was.

        Directions that the batch brings are targets, beside which outputs cannot collapse: the loss
        of constant ones is bad. Nothing is told of these.
        """
        brought, every = list(batch), [*self._own, *self._other]
        if any(_equal(x, divided.x) for divided in every for x in brought):
            return None
        own, other = (_widest(divided) for divided in (self._own, self._other))
        if math.isnan(own):
            own, other = other, math.nan
        return None if math.isnan(own) else Directed(spread=own, other=other)


@dataclass(frozen=True, kw_only=True)
class Directed:
    """The largest `direction_spread` of what was divided: all of it collapses together.

    A predictor, or a layer of few units, may be narrow from the start, where its input is not.
    """

    spread: float  # of outputs of the model, or of what the loss makes of them
    other: float = math.nan  # of what does not come from the model, as the outputs of a teacher


def _widest(divided: Iterable[Divided]) -> float:
    found = (direction_spread(d.x, d.dim) for d in divided)
    return max((s for s in found if math.isfinite(s)), default=math.nan)


def _equal(one: Tensor, other: Tensor) -> bool:
    kinds = [(x.shape, x.dtype, x.device) for x in (one, other)]
    return kinds[0] == kinds[1] and torch.equal(one, other)


def _is_two(number: Any) -> bool:
    return isinstance(number, int | float) and number == 2


def _dense(x: Any) -> TypeGuard[Tensor]:
    """Whether it is a tensor of real numbers that lie in one storage."""
    return isinstance(x, Tensor) and x.is_floating_point() and x.layout is torch.strided
