"""A member: units of a diagonal group with the same legs, and the symmetries to try for them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from eqtoolbox.weights.families.diagonal import (
    DiagonalSymmetry,
    GainRescale,
    GatedRescale,
    Rescale,
    Scale,
)
from eqtoolbox.weights.families.general_linear import GeneralLinear, MatrixSymmetry, Rope
from eqtoolbox.weights.forms.diagonal import Leg, leg
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.forms.regular import shared
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.tracing.trace import layer_name

EPSILON_LEFT = 3e-2  # residual that a normalisation's epsilon may leave


@dataclass(frozen=True, eq=False)
class Entry:
    """One parameter axis of a member: index positions[k] carries rates[k] of unit units[k].

    Where units lie across neighbouring axes, the axes from `axis` on count as one, row-major.
    """

    name: str
    axis: int
    positions: NDArray[np.int64]
    units: NDArray[np.int64]
    rates: NDArray[np.float64]
    across: int = 1  # axes taken together

    def joined(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape with these axes as one."""
        end = self.axis + self.across
        return (*shape[: self.axis], math.prod(shape[self.axis : end]), *shape[end:])


@dataclass(frozen=True, eq=False)
class Member:
    """Units with the same legs: what they scale, and which of them nothing tells apart."""

    entries: tuple[Entry, ...]
    units: int
    blocks: NDArray[np.int64]  # (blocks, units of each)
    gated: bool
    gain: bool
    normalised: bool
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    turns: bool = False  # signs, which have no direction
    along: tuple[Entry, ...] = ()  # of running statistics, which go with the units

    @property
    def signs(self) -> set[float]:
        return {float(r) for e in self.entries for r in np.unique(e.rates)}

    def legs(self) -> tuple[Leg, ...]:
        return tuple(
            leg(
                e.name,
                e.joined(self.shapes[e.name]),
                e.axis,
                torch.from_numpy(e.positions),
                torch.from_numpy(e.units),
                torch.from_numpy(e.rates),
            )
            for e in self.entries
        )

    @property
    def name(self) -> str:
        first = next((e.name for e in self.entries if e.rates[0] > 0), self.entries[0].name)
        rest = [layer_name(e.name) for e in self.entries if e.rates[0] < 0]
        if not rest and (self.turns or any(e.axis > 0 for e in self.entries)):  # labels and signs
            rest = [layer_name(self.entries[-1].name)]
        ends = dict.fromkeys([layer_name(first), *rest[-1:]])
        return "-".join(ends)

    def diagonal(self) -> DiagonalSymmetry:
        """The member as a family of one-parameter groups, one per unit."""
        kind: type[DiagonalSymmetry] = Rescale
        if min(self.signs) > 0:
            kind = Scale
        elif self.gain:
            kind = GainRescale
        elif self.gated:
            kind = GatedRescale
        tolerance = EPSILON_LEFT if self.normalised else 0.0
        return kind(name=self.name, dimension=self.units, legs=self.legs(), tolerance=tolerance)

    def matrices(self) -> Iterator[MatrixSymmetry]:
        """Larger groups that the blocks suggest: GL(d) where d > 1, else rotary pairs."""
        if not self.signs <= {1.0, -1.0} or len(self.signs) < 2:
            return
        count, size = self.blocks.shape
        if size > 1 and (legs := self._matrix_legs(1)):
            yield GeneralLinear(name=self.name, dimension=count * size**2, legs=legs)
        elif size == 1 and count > 1 and (legs := self._matrix_legs(2)):
            yield Rope(name=self.name, dimension=2 * count, legs=legs)

    def _matrix_legs(self, pair: int) -> tuple[MatrixLeg, ...]:
        """Positions (blocks, copies, size * pair) of every leg; empty where they do not line up."""
        legs = []
        for e in self.entries:
            if e.across > 1 or len(np.unique(e.rates)) != 1:
                return ()
            counts = np.bincount(e.units, minlength=self.units)
            if len(np.unique(e.positions)) != len(e.positions) or len(np.unique(counts)) != 1:
                return ()
            if counts[0] % pair:
                return ()
            order = np.lexsort((e.positions, e.units))
            per_unit = e.positions[order].reshape(self.units, counts[0] // pair, pair)
            blocks = per_unit[self.blocks]  # (blocks, size, copies, pair)
            found = blocks.transpose(0, 2, 1, 3).reshape(len(blocks), counts[0] // pair, -1)
            positions = shared(torch.from_numpy(found))
            legs.append(MatrixLeg(e.name, e.axis, positions, int(e.rates[0])))
        return tuple(legs)


def proposals(found: Iterable[Member]) -> Iterator[tuple[Member, list[ContinuousSymmetry]]]:
    """For every member what to try, the larger groups first; the first that holds is it."""
    for member in found:
        yield member, [*member.matrices(), member.diagonal()]
