"""Assignment: discrete elements and rotations that bring balanced parameters nearest to others.

All of them are orthogonal, so that |A - T B| is least where J = <A, T B> is largest. One symmetry
at a time, until none gains:

    permutation   C_ij = <what i owns of A, what j owns of B>, the best order by linear assignment;
                  where a unit can change sign, too, the parts that do count as |C_ij|; where a
                  unit is a head that matrices mix, as the largest <A_i, O B_j>, a nuclear norm
    sign flip     units with <A_i, B_i> < 0
    matrices      the polar factor of sum over legs of A B^T (Procrustes), of every block

Where units own rows and columns of one parameter J is quadratic in the order: C is its slope, and
a step is taken only if it leads nearer.

References:
    Ainsworth, Hayase & Srinivasa 2022 (arXiv 2209.04836) for permutations layer by layer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from eqtoolbox.act.gauge import grams, rows
from eqtoolbox.act.steps import Flipped, Mixed, Permuted, Step, applied
from eqtoolbox.weights.families.discrete import Permutation, Permuting, SignFlip
from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.parameter import Parameters, ParameterSymmetry

SWEEPS = 200
GAIN = 1e-6  # of the squared distance: a smaller step is none
ROUNDING = 1e-28  # of squared norms


@dataclass
class Ascent:
    """B on its way to A, and the steps that it went."""

    goal: Parameters
    here: dict[str, Tensor]
    steps: list[Step] = field(default_factory=list)

    def distance(self, names: Iterable[str] | None = None) -> float:
        """|A - B|^2 over these parameters."""
        each = self.goal if names is None else names
        return sum(float((self.goal[n] - self.here[n]).square().sum()) for n in each)

    def take(self, steps: Sequence[Step], always: bool = False) -> bool:
        """Go there if it is nearer."""
        if not steps:
            return False
        there = Ascent(self.goal, applied(steps, self.here))
        changed = [n for n in self.goal if there.here[n] is not self.here[n]]
        before, after = self.distance(changed), there.distance(changed)
        least = ROUNDING * _square({n: self.goal[n] for n in changed})
        if not always and before - after <= GAIN * before + least:
            return False
        self.here = there.here
        self.steps += steps
        return True


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Which discrete families there are, and what goes with them."""

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

    def nearest(self, goal: Parameters, start: Parameters) -> Ascent:
        """The better of two ascents: from where B stands, and from invariants of its units.

        Args:
            goal: A, balanced, without buffers.
            start: B, balanced, with the buffers that move along.
        """
        ascents = [Ascent(goal, dict(start)) for _ in range(2)]
        for symmetry, order in self.alike(goal, start):
            ascents[1].take([Permuted(symmetry=symmetry, order=order)], always=True)
        while any([ascents[1].take(flipped(f, ascents[1])) for f in self.flips]):  # noqa: C419
            pass  # before a matrix takes up the sign of what is beside it
        for ascent in ascents:
            self.climb(ascent)
        return min(ascents, key=Ascent.distance)

    def climb(self, ascent: Ascent) -> None:
        """Until no symmetry gains."""
        for _ in range(SWEEPS):
            gained = [ascent.take(self.permuted(p, ascent)) for p in self.permuting]
            gained += [ascent.take(flipped(f, ascent)) for f in self.flips]
            gained += [ascent.take([turned(m, ascent)]) for m in self.mixers]
            if not any(gained):
                break

    def permuted(self, symmetry: Permuting, ascent: Ascent) -> list[Step]:
        """The best order by the slope of J, with signs and rotations of what changes places."""
        mixers, flips = self._with(symmetry)
        scores, odd = self._scores(symmetry, ascent, mixers, flips)
        order = assigned(scores + sum(c.abs() for c in odd))
        every = torch.arange(len(order))
        steps: list[Step] = []
        if not torch.equal(order, every):
            steps.append(Permuted(symmetry=symmetry, order=order))
        for flip, own in zip(flips, odd, strict=True):
            units = (own.cpu()[every, order] < 0).nonzero().reshape(-1)
            if len(units):
                steps.append(Flipped(symmetry=flip, units=units))
        there = Ascent(ascent.goal, dict(ascent.here))
        there.take(steps, always=True)
        return [*steps, *(turned(m, there) for m in mixers)]

    def alike(self, goal: Parameters, start: Parameters) -> Iterator[tuple[Permuting, Tensor]]:
        """Orders by what no permutation, sign or rotation of other axes changes."""
        mixed = {name for m in self.mixers for name in m.names}
        for symmetry in self.permuting:
            sides = (invariants(symmetry, params, mixed) for params in (goal, start))
            yield symmetry, assigned(-torch.cdist(*sides).square())

    def _with(self, symmetry: Permuting) -> tuple[list[MatrixSymmetry], list[SignFlip]]:
        """Matrices within the units that change places, and signs of these units."""
        if not isinstance(symmetry, Permutation):
            return [], []
        mixers = [m for m in self.mixers if _within(m, symmetry)]
        flips, taken = list[SignFlip](), set[tuple[str, int]]()
        for flip in self.flips:
            own = {(n, a): p for n, axes in flip.owned.items() for a, p in axes.items()}
            alike = all(_same(p, symmetry.owned.get(n, {}).get(a)) for (n, a), p in own.items())
            if alike and not taken & own.keys():
                flips.append(flip)
                taken |= own.keys()
        return mixers, flips

    def _scores(
        self,
        symmetry: Permuting,
        ascent: Ascent,
        mixers: Sequence[MatrixSymmetry],
        flips: Sequence[SignFlip],
    ) -> tuple[Tensor, list[Tensor]]:
        """C of what keeps its sign, and of each kind of sign, (things, things)."""
        a, b = (symmetry.rows(params) for params in (ascent.goal, ascent.here))
        keys = list(a)
        places: list[tuple[str, int]] = [(name, 0) for name in keys]
        if isinstance(symmetry, Permutation):
            places = [(n, axis) for n, axes in symmetry.owned.items() for axis in axes]
        mixed = {(leg.name, leg.axis) for m in mixers for leg in m.legs}
        first = a[keys[0]]
        even = first.new_zeros(len(first), len(first))
        odd = [torch.zeros_like(even) for _ in flips]
        for key, place in zip(keys, places, strict=True):
            if place not in mixed:
                kinds = [k for k, f in enumerate(flips) if place[1] in f.owned.get(place[0], {})]
                into = odd[kinds[0]] if kinds else even
                into += a[key] @ b[key].mT
        for mixer in mixers:
            even += largest(mixer, ascent, len(first))
        return even, odd


def assigned(scores: Tensor) -> Tensor:
    """order[i] of the column that row i is given, the sum being largest: (things,)."""
    return torch.from_numpy(linear_sum_assignment(scores.cpu().numpy(), maximize=True)[1])


def invariants(symmetry: Permuting, params: Parameters, mixed: set[str]) -> Tensor:
    """What each thing owns as lengths in order, or one norm where matrices act: (things, ...)."""
    parts = []
    for key, owned in symmetry.rows(params).items():
        name = key.split("[")[0]
        norm = owned.norm(dim=1, keepdim=True)
        parts.append(norm if name in mixed else owned.abs().sort(dim=1).values)
    return torch.cat(parts, 1)


def flipped(symmetry: SignFlip, ascent: Ascent) -> list[Step]:
    """Units that stand against A's."""
    a, b = (symmetry.rows(params) for params in (ascent.goal, ascent.here))
    along = sum((a[k] * b[k]).sum(1) for k in a)
    assert isinstance(along, Tensor)
    against = (along < 0).nonzero().reshape(-1).cpu()
    if symmetry.crossed:  # two at once may undo each other
        against = along.argmin()[None].cpu()[: len(against)]
    return [Flipped(symmetry=symmetry, units=against)] if len(against) else []


def turned(symmetry: MatrixSymmetry, ascent: Ascent) -> Mixed:
    """The orthogonal matrix of every block that brings it nearest."""
    parts = [_both(leg, ascent) for leg in symmetry.legs]
    k = torch.stack([b @ a.mT for a, b in parts]).sum(0)
    if grams(symmetry):
        u, _, v = torch.linalg.svd(k)
        return Mixed(symmetry=symmetry, matrices=(u @ v).mT)
    cosine, sine = _plane(k)
    length = torch.hypot(cosine, sine)
    c, s = (
        torch.where(length > 0, cosine / length, 1.0),
        torch.where(length > 0, sine / length, 0.0),
    )
    matrices = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    return Mixed(symmetry=symmetry, matrices=matrices)


def largest(symmetry: MatrixSymmetry, ascent: Ascent, units: int) -> Tensor:
    """Max over rotations O of <A_i, O B_j> of all blocks within units i and j: (units, units)."""
    pairs = [_both(leg, ascent) for leg in symmetry.legs]
    a, b = (torch.cat([p[k] for p in pairs], 2) for k in (0, 1))
    a, b = (x.reshape(units, -1, *x.shape[1:]) for x in (a, b))  # (units, blocks, d, columns)
    k = torch.einsum("jndc,inec->ijnde", b, a)
    best = torch.linalg.svdvals(k).sum(-1) if grams(symmetry) else torch.hypot(*_plane(k))
    return best.sum(-1)


def _plane(k: Tensor) -> tuple[Tensor, Tensor]:
    """tr(O K) = cos * first + sin * second for a rotation O of the plane."""
    return k[..., 0, 0] + k[..., 1, 1], k[..., 0, 1] - k[..., 1, 0]


def _both(leg: MatrixLeg, ascent: Ascent) -> tuple[Tensor, Tensor]:
    return rows(leg, ascent.goal), rows(leg, ascent.here)


def _within(mixer: MatrixSymmetry, symmetry: Permutation) -> bool:
    """Whether every block lies in one unit, as many in each, in order."""
    units = symmetry.dimension + 1
    if mixer.blocks % units:
        return False
    return all(
        _same(leg.positions.reshape(units, -1), symmetry.owned.get(leg.name, {}).get(leg.axis))
        for leg in mixer.legs
    )


def _same(own: Tensor, other: Tensor | None) -> bool:
    """Whether units own the same entries, in any order."""
    if other is None or own.shape != other.shape:
        return False
    return torch.equal(own.sort(dim=1).values, other.sort(dim=1).values)


def _square(tensors: Mapping[str, Tensor]) -> float:
    return sum(float(x.square().sum()) for x in tensors.values())
