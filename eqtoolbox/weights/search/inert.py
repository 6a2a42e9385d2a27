"""Inert: units that nothing was seen of, apart from those whose law was put to the test."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from eqtoolbox.weights.families.diagonal import DiagonalSymmetry
from eqtoolbox.weights.forms.diagonal import Leg
from eqtoolbox.weights.forms.regular import blocks
from eqtoolbox.weights.parameter import DiscreteSymmetry, ParameterSymmetry
from eqtoolbox.weights.search.problem import Problem
from eqtoolbox.weights.search.slopes import Slopes
from eqtoolbox.weights.search.verification import gradients

S = TypeVar("S", bound=ParameterSymmetry)
_NAN = float("nan")
D = TypeVar("D", bound=DiagonalSymmetry)


def looked_at_elsewhere(problem: Problem, slopes: Slopes) -> None:
    """Units of a small model that are inert at its point may live, and be tested, at another."""
    for point in problem.point.others() if problem.point.whole else ():
        still = [s for k, s in enumerate(slopes.symmetries) if slopes.inert(k)]
        if not still:
            return
        there = Slopes(still, lit=True)
        gradients(problem.whole, point, there.add)
        slopes.but_for(there)


def apart(symmetry: S, inert: Sequence[int]) -> Iterator[S]:
    """The symmetry of the other units, and that of the inert ones, of status "inert".

    Example:
        >>> from eqtoolbox.weights.families.diagonal import Scale
        >>> from eqtoolbox.weights.forms.diagonal import leg
        >>> every = torch.arange(3)
        >>> legs = (leg("w", (3, 2), 0, every, every, torch.ones(3)),)
        >>> scale = Scale(name="w", dimension=3, legs=legs, status="verified", residual=0.0)
        >>> [(s.status, s.dimension, s.legs[0].positions.tolist()) for s in apart(scale, [1])]
        [('verified', 2, [0, 2]), ('inert', 1, [1])]
    """
    if not inert or symmetry.status == "broken" or not isinstance(symmetry, DiagonalSymmetry):
        yield symmetry
        return
    still = torch.zeros(symmetry.dimension, dtype=torch.bool)
    still[list(inert)] = True
    if not bool(still.all()):
        yield _of(symmetry, ~still)
    yield replace(_of(symmetry, still), status="inert", residual=_NAN, epsilon=_NAN)


def exchanged(found: Sequence[ParameterSymmetry]) -> list[ParameterSymmetry]:
    """All of them, and what exchanges or reflects units that are all inert called so as well."""
    diagonal = [s for s in found if isinstance(s, DiagonalSymmetry) and s.status != "broken"]
    living = [set(s.names) for s in diagonal if s.status != "inert"]
    still = [own for s in diagonal if (own := set(s.names)) not in living]
    return [
        replace(s, status="inert", residual=_NAN)
        if isinstance(s, DiscreteSymmetry) and set(s.names) in still
        else s
        for s in found
    ]


def _of(symmetry: D, chosen: Tensor) -> D:
    """The symmetry of some units."""
    number = torch.where(chosen, chosen.long().cumsum(0) - 1, -1)
    legs = [made for leg in symmetry.legs if (made := _leg(leg, number)) is not None]
    return replace(symmetry, legs=tuple(legs), dimension=int(chosen.sum()))


def _leg(leg: Leg, number: Tensor) -> Leg | None:
    units = number[leg.units]
    own = units >= 0
    if not bool(own.any()):
        return None
    return replace(leg, blocks=blocks(leg.positions[own], units[own], leg.rates[own]))
