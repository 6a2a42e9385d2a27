"""Gauge: the continuous element that takes parameters to the balanced point of their orbit.

It is what `weights.orbit.canonical` does, kept as an element, so that it can be undone: with B
balanced, matched to A balanced, and A's balancing undone, B' stands in A's own scales. As T_A is
linear and acts on both ends, the straight line from A to B' has the losses of that between the
balanced points.

    equal sides   s = log(n- / n+) / 4, n+- the squared norms of both sides of a unit
    equal grams   M > 0 with M X X^T M = M^-1 Y Y^T M^-1: the geometric mean of (X X^T)^-1 and Y Y^T

A block of which one side has no full rank has no balanced point: the other side's gram matrix is
made 1. Units with an empty side, and blocks without a full side, stay.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eqtoolbox.act.steps import Mixed, Scaled, Step, applied
from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters

SETTLED = 1e-12  # imbalance that is rounding in float64
EMPTY = 1e-20  # ratio of squared norms below which a side is empty
SINGULAR = 1e-7  # ratio of singular values below which a block has no full rank
ROUNDS = 300


def balancing(
    symmetries: Sequence[ContinuousSymmetry], params: Parameters
) -> tuple[list[Step], dict[str, Tensor]]:
    """Steps to the balanced point, one a symmetry, and that point in float64.

    The symmetries act on different axes, or by diagonal matrices: their elements commute.
    """
    start = {n: p.detach().double() for n, p in params.items()}
    moved, total = dict(start), dict[int, Step]()
    for _ in range(ROUNDS):
        worst = 0.0
        for number, symmetry in enumerate(symmetries):
            made, gap = _gram_step(symmetry, moved) if grams(symmetry) else _sides(symmetry, moved)
            moved.update(made.on(moved))
            total[number] = _after(total.get(number), made)
            worst = max(worst, gap)
        if worst <= SETTLED:
            break
    steps = list(total.values())
    return steps, applied(steps, start)


def grams(symmetry: ContinuousSymmetry) -> bool:
    """Whether whole matrices act, not units one by one."""
    return isinstance(symmetry, MatrixSymmetry) and symmetry.form.balance == "equal grams"


def _after(first: Step | None, then: Scaled | Mixed) -> Step:
    """One element of one symmetry after another."""
    if isinstance(first, Scaled) and isinstance(then, Scaled):
        return Scaled(symmetry=then.symmetry, coefficients=first.coefficients + then.coefficients)
    if isinstance(first, Mixed) and isinstance(then, Mixed):
        return Mixed(symmetry=then.symmetry, matrices=then.matrices @ first.matrices)
    return then


def _sides(symmetry: ContinuousSymmetry, params: Parameters) -> tuple[Scaled, float]:
    """Both sides of every unit to the same norm."""
    charge, total = symmetry.charge(params), symmetry.charge_scale(params)
    plus, minus = (total + charge).clamp_min(0), (total - charge).clamp_min(0)
    full = torch.minimum(plus, minus) > EMPTY * total
    s = torch.where(full, (minus / plus).log(), 0.0) / (4 * symmetry.form.power)
    whole = torch.zeros(symmetry.dimension, dtype=s.dtype, device=s.device)
    whole[: len(s)] = s  # rope has phases besides, which are orthogonal
    gap = torch.where(full, charge.abs() / total, 0.0)
    return Scaled(symmetry=symmetry, coefficients=whole), float(gap.max())


def _gram_step(symmetry: ContinuousSymmetry, params: Parameters) -> tuple[Mixed, float]:
    """X X^T = Y Y^T for the legs of every block."""
    assert isinstance(symmetry, MatrixSymmetry)
    lx, ly = (_triangle(stacked(symmetry, params, sign)) for sign in (1, -1))
    eye = torch.eye(symmetry.size).to(lx).expand_as(lx)
    (x_full, lx), (y_full, ly) = ((f, torch.where(f, t, eye)) for f, t in map(_ranked, (lx, ly)))
    lx, ly = (
        torch.where(x_full, lx, torch.linalg.inv(ly).mT),
        torch.where(y_full, ly, torch.linalg.inv(lx).mT),
    )
    _, s, v = torch.linalg.svd(ly.mT @ lx)
    half = torch.linalg.solve_triangular(lx, s.sqrt()[:, :, None] * v, upper=False, left=False)
    u, _, w = torch.linalg.svd(half)
    matrices = (u @ w).mT @ half  # symmetric: a balanced block is not turned
    gap = (matrices - eye).flatten(1).norm(dim=1) / symmetry.size**0.5
    return Mixed(symmetry=symmetry, matrices=matrices), float(gap.max())


def _ranked(triangle: Tensor) -> tuple[Tensor, Tensor]:
    """Whether it has full rank, and it."""
    s = torch.linalg.svdvals(triangle)
    return (s[:, -1] > SINGULAR * s[:, 0])[:, None, None], triangle


def _triangle(side: Tensor) -> Tensor:
    """Lower triangular L with L L^T the gram matrix, (blocks, d, d)."""
    missing = side.shape[1] - side.shape[2]
    if missing > 0:
        side = torch.cat([side, side.new_zeros(*side.shape[:2], missing)], 2)
    return torch.linalg.qr(side.mT).R.mT


def stacked(symmetry: MatrixSymmetry, params: Parameters, sign: int) -> Tensor:
    """All legs of one sign side by side, (blocks, d, columns)."""
    return torch.cat([rows(leg, params) for leg in symmetry.legs if leg.sign == sign], dim=2)


def rows(leg: MatrixLeg, params: Parameters) -> Tensor:
    """What a leg mixes, (blocks, d, columns)."""
    return leg.gather(params[leg.name]).transpose(1, 2).flatten(2)
