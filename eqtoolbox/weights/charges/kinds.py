"""Kinds: which symmetries are evaluated together, and their moments from one walk."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eqtoolbox.weights.charges.bias_shifts import BiasShifts
from eqtoolbox.weights.charges.diagonals import LONG, Diagonals
from eqtoolbox.weights.charges.grams import Grams
from eqtoolbox.weights.charges.moments import Moments, Singles
from eqtoolbox.weights.charges.shifts import Shifts
from eqtoolbox.weights.charges.sketch import Sketch
from eqtoolbox.weights.charges.stack import Layout, Pair, Points, Stacks
from eqtoolbox.weights.families.bias_shift import BiasShift
from eqtoolbox.weights.families.compensation import Compensation
from eqtoolbox.weights.families.diagonal import DiagonalSymmetry
from eqtoolbox.weights.families.general_linear import GeneralLinear, MatrixSymmetry
from eqtoolbox.weights.families.head import HeadShift
from eqtoolbox.weights.families.homogeneity import Homogeneity
from eqtoolbox.weights.families.rope import Rope
from eqtoolbox.weights.families.translation import Translation
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters

SMALL = 16  # dimensions of a general linear group up to which no sketch is made of it


def kinds_of(
    members: Sequence[ContinuousSymmetry], params: Parameters, layout: Layout, sketch: bool
) -> Iterator[Moments]:
    """Symmetries that are evaluated together; whole families, so that theirs lie together."""
    families: dict[str, list[ContinuousSymmetry]] = {}
    for m in members:
        families.setdefault(m.family, []).append(m)
    groups: dict[tuple[str, int], list[ContinuousSymmetry]] = {}
    for of in families.values():
        kinds = [_kind(m) for m in of]
        if len({kind for kind, _ in kinds}) > 1 or kinds[0][0] == "single":
            groups.setdefault(("single", int(_quadratic(of, params))), []).extend(of)
        else:
            for own, m in zip(kinds, of, strict=True):
                groups.setdefault(own, []).append(m)
    for (kind, option), of in groups.items():
        if kind == "diagonal":
            diagonal = (DiagonalSymmetry, Homogeneity)
            yield Diagonals([m for m in of if isinstance(m, diagonal)], layout)
        elif kind == "shift":
            shifting = (Translation, Compensation, HeadShift)
            yield Shifts([m for m in of if isinstance(m, shifting)], layout)
        elif kind == "bias_shift":
            yield BiasShifts([m for m in of if isinstance(m, BiasShift)], layout)
        elif kind == "single":
            yield Singles(of, quadratic=bool(option))
        elif sketch and kind == GeneralLinear.family and option > SMALL:
            yield Sketch([m for m in of if isinstance(m, GeneralLinear)], layout)
        else:
            yield Grams([m for m in of if isinstance(m, MatrixSymmetry)], layout)


def _kind(member: ContinuousSymmetry) -> tuple[str, int]:
    """How a symmetry is evaluated; matrices of one size together."""
    if isinstance(member, (DiagonalSymmetry, Homogeneity)):
        return "diagonal", 0
    if isinstance(member, (Translation, Compensation, HeadShift)):
        return "shift", 0
    if isinstance(member, BiasShift) and member.direct:
        return "bias_shift", 0
    if isinstance(member, (GeneralLinear, Rope)):
        return member.family, member.size
    return "single", 0


def _quadratic(members: Sequence[ContinuousSymmetry], params: Parameters) -> bool:
    """Whether charges are quadratic: what is not of first order in a step does not vanish.

    Asked along a random step, since what the parameters are now may be zero.
    """
    rng = torch.Generator().manual_seed(0)
    own = {n: params[n] for m in members for n in m.names}
    steps = {n: torch.randn(p.shape, generator=rng).to(p) for n, p in own.items()}
    return any(bool(m.finite_step(steps).any()) for m in members)


def taken(
    kinds: Sequence[Moments],
    stacks: Stacks,
    points: Points,
    pairs: Sequence[Pair],
    squares: list[Tensor] | None = None,
) -> list[Tensor]:
    """Moments of every kind, all of them taken from one stack before the next.

    `squares` is given |point 1|^2 of every stack.
    """
    rows: list[list[list[Tensor]]] = [[] for _ in kinds]
    for stack in stacks.over(points):
        for into, kind in zip(rows, kinds, strict=True):
            into.append(kind.rows(stack, points, pairs))
        if squares is not None:
            parts = torch.split(stack.whole[1].reshape(-1), LONG)
            squares += [torch.dot(part, part) for part in parts]
    return [k.gathered(r, points, pairs) for k, r in zip(kinds, rows, strict=True)]
