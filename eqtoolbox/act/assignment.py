"""Matching: discrete elements and rotations that bring a model nearest to another, from evidence.

Evidence of a unit is what it owns in the balanced weights, or what it answers on a batch. All these
motions are orthogonal, so that |A - T B| is least where <A, T B> is largest. For one symmetry:

    permutation   C_ij = <evidence of i in A, of j in B>, the best order by linear assignment;
                  where a unit can change sign, too, the parts that do count as |C_ij|; where a
                  unit is a head that matrices mix, as the largest <A_i, O B_j>, a nuclear norm
    sign flip     units with <A_i, B_i> < 0
    matrices      the polar factor of sum over legs of A B^T (Procrustes), of every block

References:
    Ainsworth, Hayase & Srinivasa 2022 (arXiv 2209.04836) for permutations layer by layer; Li et
    al. 2015 (arXiv 1511.07543) for those of activations.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from eqtoolbox.act.gauge import grams, rows
from eqtoolbox.act.motion import Exchange, Mixed, Motion
from eqtoolbox.weights.families.discrete import Permutation, Permuting, SignFlip
from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from eqtoolbox.weights.forms.gram import Gram, MatrixLeg
from eqtoolbox.weights.parameter import Parameters, ParameterSymmetry

Pair = tuple[Tensor, Tensor]  # of A and of B


class Likeness(ABC):
    """By what units of two models are compared."""

    @abstractmethod
    def units(self, symmetry: Permuting | SignFlip) -> Iterator[tuple[tuple[str, int], Pair]]:
        """What each owns, (units, ...), with the parameter and the axis that it is found by."""

    @abstractmethod
    def blocks(self, leg: MatrixLeg) -> Iterator[Pair]:
        """What a leg mixes, (blocks, d, ...)."""


class Weights(Likeness):
    """Balanced parameters."""

    def __init__(self, goal: Parameters, here: Parameters) -> None:
        self.goal, self.here = goal, here

    def units(self, symmetry: Permuting | SignFlip) -> Iterator[tuple[tuple[str, int], Pair]]:
        a, b = (symmetry.rows(params) for params in (self.goal, self.here))
        for key in a:
            name, _, axis = key.partition("[")
            yield (name, int(axis[:-1] or 0) if axis else 0), (a[key], b[key])

    def blocks(self, leg: MatrixLeg) -> Iterator[Pair]:
        yield rows(leg, self.goal), rows(leg, self.here)


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Which families of orthogonal motions there are, and what goes with them."""

    permuting: Sequence[Permuting]
    flips: Sequence[SignFlip]
    mixers: Sequence[MatrixSymmetry]  # of balanced blocks, which only rotations are free in

    @classmethod
    def of(cls, symmetries: Sequence[ParameterSymmetry]) -> "Matching":
        """Those of these symmetries that take part."""
        return cls(
            permuting=[s for s in symmetries if isinstance(s, Permuting)],
            flips=[s for s in symmetries if isinstance(s, SignFlip)],
            mixers=[s for s in symmetries if isinstance(s, MatrixSymmetry)],
        )

    def beside(self, symmetry: Permuting) -> tuple[list[MatrixSymmetry], list[SignFlip]]:
        """Matrices within the things that change places, and signs of these things."""
        if not isinstance(symmetry, Permutation):
            return [], []
        mixers = [m for m in self.mixers if within(m.form, symmetry)]
        flips, taken = list[SignFlip](), set[tuple[str, int]]()
        for flip in self.flips:
            own = {(n, a): p for n, axes in flip.owned.items() for a, p in axes.items()}
            alike = all(_same(p, symmetry.owned.get(n, {}).get(a)) for (n, a), p in own.items())
            if alike and not taken & own.keys():
                flips.append(flip)
                taken |= own.keys()
        return mixers, flips

    def permuted(self, symmetry: Permuting, evidence: Likeness, params: Parameters) -> list[Motion]:
        """The best order, with signs and rotations of what changes places; empty: none is better.

        Args:
            symmetry: whose things change places.
            evidence: of both models.
            params: of the model's shapes.
        """
        mixers, flips = self.beside(symmetry)
        even, *odd = _scores(symmetry, evidence, mixers, flips)
        several = [_meetings(m, evidence, len(even)) for m in mixers]
        scores = even + sum(c.abs() for c in odd)
        order = assigned(scores + sum(_largest(m, k) for m, k in zip(mixers, several, strict=True)))
        every = torch.arange(len(order))
        motions: list[Motion] = []
        if not torch.equal(order, every):
            motions.append(exchange(symmetry, order, params))
        for flip, own in zip(flips, odd, strict=True):
            motions += _against(flip, own.cpu()[every, order])
        for mixer, k in zip(mixers, several, strict=True):
            motions.append(_turn(mixer, k[every, order.to(k.device)].flatten(0, 1)))
        return motions


@dataclass(frozen=True, kw_only=True)
class Rearranged(Exchange):
    """Thing k replaced by thing what[k], or the units `what` reflected."""

    what: Tensor


def exchange(symmetry: Permuting, order: Tensor, params: Parameters) -> Rearranged:
    """Thing k replaced by thing order[k]."""
    made = Exchange.of(symmetry, lambda tensors: symmetry.permuted(tensors, order), params)
    return Rearranged(symmetry=symmetry, element=made.element, places=made.places, what=order)


def reflected(symmetry: SignFlip, units: Tensor) -> Rearranged:
    """These units with the other sign."""
    return Rearranged(
        symmetry=symmetry, element=lambda tensors: symmetry.flipped(tensors, units), what=units
    )


def assigned(scores: Tensor) -> Tensor:
    """order[i] of the column that row i is given, the sum being largest: (things,)."""
    return torch.from_numpy(linear_sum_assignment(scores.cpu().numpy(), maximize=True)[1])


def flipped(symmetry: SignFlip, evidence: Likeness) -> list[Motion]:
    """Units that stand against A's, reflected."""
    along = torch.zeros(symmetry.dimension, dtype=torch.float64)
    for _, (a, b) in evidence.units(symmetry):
        along += (a * b).flatten(1).sum(1).cpu()
    if symmetry.crossed:  # two at once may undo each other
        along[along > along.min()] = 0.0
    return _against(symmetry, along)


def turned(symmetry: MatrixSymmetry, evidence: Likeness) -> list[Motion]:
    """The orthogonal matrix of every block that brings it nearest."""
    pairs = [pair for leg in symmetry.legs for pair in evidence.blocks(leg)]
    if not pairs:
        return []
    return [_turn(symmetry, sum_of([b.flatten(2) @ a.flatten(2).mT for a, b in pairs]))]


def invariants(symmetry: Permuting, params: Parameters, mixed: set[str]) -> Tensor:
    """What each thing owns as lengths in order, or one norm where matrices act: (things, ...)."""
    parts = []
    for key, owned in symmetry.rows(params).items():
        name = key.split("[")[0]
        norm = owned.norm(dim=1, keepdim=True)
        parts.append(norm if name in mixed else owned.abs().sort(dim=1).values)
    return torch.cat(parts, 1)


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """Of tensors of one shape."""
    return torch.stack(list(parts)).sum(0)


def _scores(
    symmetry: Permuting,
    evidence: Likeness,
    mixers: Sequence[MatrixSymmetry],
    flips: Sequence[SignFlip],
) -> list[Tensor]:
    """C of what keeps its sign, then of each kind of sign: (things, things)."""
    things = symmetry.dimension + 1
    found = [torch.zeros(things, things, dtype=torch.float64) for _ in range(1 + len(flips))]
    mixed = {(leg.name, leg.axis) for m in mixers for leg in m.legs}
    for place, (a, b) in evidence.units(symmetry):
        if place not in mixed:
            kinds = [k for k, f in enumerate(flips, 1) if place[1] in f.owned.get(place[0], {})]
            found[kinds[0] if kinds else 0] += (a.flatten(1) @ b.flatten(1).mT).cpu()
    return found


def _meetings(symmetry: MatrixSymmetry, evidence: Likeness, units: int) -> Tensor:
    """K = B_j A_i^T of the blocks within units i and j: (units, units, blocks, d, d)."""

    def split(x: Tensor) -> Tensor:
        return x.reshape(units, -1, symmetry.size, x[0, 0].numel())

    parts = [
        torch.einsum("jndc,inec->ijnde", split(b), split(a))
        for leg in symmetry.legs
        for a, b in evidence.blocks(leg)
    ]
    each = symmetry.blocks // units, symmetry.size, symmetry.size
    return sum_of(parts or [torch.zeros(units, units, *each, dtype=torch.float64)])


def _largest(symmetry: MatrixSymmetry, k: Tensor) -> Tensor:
    """Max over rotations O of tr(O K), summed over blocks: (units, units)."""
    best = torch.linalg.svdvals(k).sum(-1) if grams(symmetry) else torch.hypot(*_plane(k))
    return best.sum(-1).cpu()


def _turn(symmetry: MatrixSymmetry, k: Tensor) -> Mixed:
    """The orthogonal O of every block with the largest tr(O K)."""
    if grams(symmetry):
        u, _, v = torch.linalg.svd(k)
        turn = (u @ v).mT
    else:
        cosine, sine = _plane(k)
        length = torch.hypot(cosine, sine)
        c = torch.where(length > 0, cosine / length, 1.0)
        s = torch.where(length > 0, sine / length, 0.0)
        turn = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    return Mixed(form=symmetry.form, plus=turn, minus=turn)


def _plane(k: Tensor) -> tuple[Tensor, Tensor]:
    """tr(O K) = cos * first + sin * second for a rotation O of the plane."""
    return k[..., 0, 0] + k[..., 1, 1], k[..., 0, 1] - k[..., 1, 0]


def _against(symmetry: SignFlip, along: Tensor) -> list[Motion]:
    """Units with less than nothing in common, reflected."""
    units = (along < 0).nonzero().reshape(-1)
    return [reflected(symmetry, units)] if len(units) else []


def within(mixer: Gram, symmetry: Permutation) -> bool:
    """Whether every block lies in one unit, as many in each, in order."""
    units = symmetry.dimension + 1
    if mixer.blocks % units:
        return False
    for leg in mixer.legs:
        owned = symmetry.owned.get(leg.name, {}).get(leg.axis)
        own = leg.positions.reshape(units, -1)
        if owned is None or not all(
            torch.isin(x, y).all() for x, y in zip(own, owned, strict=True)
        ):
            return False
    return True


def _same(own: Tensor, other: Tensor | None) -> bool:
    """Whether units own the same entries, in any order."""
    if other is None or own.shape != other.shape:
        return False
    return torch.equal(own.sort(dim=1).values, other.sort(dim=1).values)
