"""Gauge: the continuous motion that takes parameters to the balanced point of their orbit.

It is what `weights.orbit.canonical` does, kept as a motion, so that it can be undone: with B
balanced, matched to A balanced, and A's balancing undone, B' stands in A's own scales. As that is
linear and acts on both ends, the straight line from A to B' has the losses of the line between the
balanced points.

    equal sides   s = log(n- / n+) / 4, n+- the squared norms of both sides of a unit
    equal grams   M > 0 with M X X^T M = M^-1 Y Y^T M^-1: the geometric mean of (X X^T)^-1 and Y Y^T

A block of which one side has no full rank has no balanced point: the other side's gram matrix is
made 1. Units with an empty side, and blocks without a full side, stay.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eqtoolbox.act.motion import Flow, Mixed, Motion, Path
from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.forms.stack import Parameters
from eqtoolbox.weights.orbit.canonical import sides
from eqtoolbox.weights.parameter import ContinuousSymmetry

SETTLED = 1e-13  # exponent or matrix - 1 that is rounding in float64
EMPTY = 1e-20  # ratio of squared norms below which a side is empty
SINGULAR = 1e-7  # ratio of singular values below which a block has no full rank
ROUNDS = 300


def balancing(symmetries: Sequence[ContinuousSymmetry], params: Parameters) -> list[Flow | Mixed]:
    """Motions to the balanced point, one a symmetry.

    The symmetries act on different axes, or by diagonal matrices: their elements commute.

    Args:
        symmetries: with a balanced point in closed form (`balanced`).
        params: float64.
    """
    moved, total = dict(params), dict[int, Flow | Mixed]()
    for _ in range(ROUNDS):
        worst = 0.0
        for number, symmetry in enumerate(symmetries):
            made, gap = _gram_step(symmetry, moved) if grams(symmetry) else _sides(symmetry, moved)
            moved.update(made.moved(moved))
            total[number] = _after(total.get(number), made)
            worst = max(worst, gap)
        if worst <= SETTLED:
            break
    return list(total.values())


def balanced(symmetry: ContinuousSymmetry) -> bool:
    """Whether it keeps the function and has a balanced point here."""
    return not symmetry.equivariant and symmetry.form.balance in ("equal sides", "equal grams")


def grams(symmetry: ContinuousSymmetry) -> bool:
    """Whether whole matrices act, not units one by one."""
    return isinstance(symmetry, MatrixSymmetry) and symmetry.form.balance == "equal grams"


def inverse(motion: Flow | Mixed) -> Motion:
    """T^-1."""
    if isinstance(motion, Flow):
        return Flow(form=motion.form, coefficients=-motion.coefficients)
    return Mixed(form=motion.form, plus=motion.minus.mT, minus=motion.plus.mT)


def applied(motions: Sequence[Motion], tensors: Parameters) -> dict[str, Tensor]:
    """All tensors after these motions, in their order."""
    return {**tensors, **Path(motions=motions).moved(tensors)}


def _after(first: Flow | Mixed | None, then: Flow | Mixed) -> Flow | Mixed:
    """One element of one symmetry after another."""
    if isinstance(first, Flow) and isinstance(then, Flow):
        return Flow(form=then.form, coefficients=first.coefficients + then.coefficients)
    if isinstance(first, Mixed) and isinstance(then, Mixed):
        return Mixed(form=then.form, plus=then.plus @ first.plus, minus=then.minus @ first.minus)
    return then


def _sides(symmetry: ContinuousSymmetry, params: Parameters) -> tuple[Flow, float]:
    """Both sides of every unit to the same norm."""
    plus, minus = sides(symmetry.form, params)
    full = torch.minimum(plus, minus) > EMPTY * torch.maximum(plus, minus)
    s = torch.where(full, (minus / plus).log(), 0.0) / (4 * symmetry.form.power)
    whole = torch.zeros(symmetry.dimension, dtype=s.dtype, device=s.device)
    whole[: len(s)] = s  # rope has phases besides, which are orthogonal
    return Flow(form=symmetry.form, coefficients=whole), float(s.abs().max())


def _gram_step(symmetry: ContinuousSymmetry, params: Parameters) -> tuple[Mixed, float]:
    """X X^T = Y Y^T for the legs of every block."""
    assert isinstance(symmetry, MatrixSymmetry)
    lx, ly = (_triangle(stacked(symmetry, params, sign)) for sign in (1, -1))
    eye = torch.eye(symmetry.size).to(lx).expand_as(lx)
    x_full, y_full = _full(lx), _full(ly)
    lx, ly = torch.where(x_full, lx, eye), torch.where(y_full, ly, eye)
    lx, ly = (
        torch.where(x_full, lx, torch.linalg.inv(ly).mT),
        torch.where(y_full, ly, torch.linalg.inv(lx).mT),
    )
    _, s, v = torch.linalg.svd(ly.mT @ lx)
    half = torch.linalg.solve_triangular(lx, s.sqrt()[:, :, None] * v, upper=False, left=False)
    u, _, w = torch.linalg.svd(half)
    matrix = (u @ w).mT @ half  # symmetric: a balanced block is not turned
    gap = (matrix - eye).flatten(1).norm(dim=1) / symmetry.size**0.5
    motion = Mixed(form=symmetry.form, plus=matrix, minus=torch.linalg.inv(matrix).mT)
    return motion, float(gap.max())


def _full(triangle: Tensor) -> Tensor:
    """Whether it has full rank, (blocks, 1, 1)."""
    s: Tensor = torch.linalg.svdvals(triangle)
    return (s[:, -1] > SINGULAR * s[:, 0])[:, None, None]


def _triangle(side: Tensor) -> Tensor:
    """Lower triangular L with L L^T the gram matrix, (blocks, d, d)."""
    missing = side.shape[1] - side.shape[2]
    if missing > 0:
        side = torch.cat([side, side.new_zeros(*side.shape[:2], missing)], 2)
    r: Tensor = torch.linalg.qr(side.mT).R
    return r.mT


def stacked(symmetry: MatrixSymmetry, params: Parameters, sign: int) -> Tensor:
    """All legs of one sign side by side, (blocks, d, columns)."""
    return torch.cat([rows(leg, params) for leg in symmetry.legs if leg.sign == sign], dim=2)


def rows(leg: MatrixLeg, params: Parameters) -> Tensor:
    """What a leg mixes, (blocks, d, columns)."""
    return leg.gather(params[leg.name]).transpose(1, 2).flatten(2)
