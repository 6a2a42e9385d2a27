"""The canonical point of an orbit: the same network in balanced weights, whatever it was moved by.

A symmetry T carries the Hessian along as H(T theta) = T^-T H(theta) T^-1. This is no change of
basis unless T is orthogonal, so that neither the eigenvalues of H nor those of its projection off
the orbit are the orbit's own. A point that only depends on the orbit is: the minimum of

    Phi = 1/2 |theta'|^2 + sum over scale groups of log |w|

where the w are the weights that a normalisation makes scale-invariant and theta' are the rest. For
the reductive groups (rescale, GL) Phi is convex along the orbit, with a minimum unique up to
orthogonal T (Kempf & Ness), at which all charges vanish: |in_i| = |out_i| and X X^T = Y Y^T for
the stacked legs W1, b1 and W2^T of a GL(d); for scale groups |w| = 1. Each step below takes one
family there in closed form; they are repeated, since layers share weights, until none moves.

    equal sides (rescale, rope)   s = log(n- / n+) / 4, n+- the squared norms of both sides
    norm one (scale)              s = -log |w|
    equal grams (GL(d))           X = L_x O_x, Y = L_y O_y, L_y^T L_x = U S V^T; then
                                  X = S^1/2 V^T O_x, Y = S^1/2 U^T O_y
    mean zero (translation)       minus its mean: the charges vanish
    bias zero (bias shift)        the shifted bias is zero


What orthogonal T leave free is chosen alike wherever on the orbit one starts: the grams of a
GL(d) are diagonal, largest first, the pairs of rope stand on their principal axes, and the largest
entry of a row is positive.

Where one side of a unit is zero the orbit has no minimum and its limit is taken: both are zero. Or
no limits are taken: such units stay as they are, and the path to the point is one of the group.

References:
    Kempf & Ness 1979, The length of vectors in representation spaces; Du, Hu & Lee 2018
    (arXiv 1806.00900).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.weights.forms.diagonal import Diagonal
from eqtoolbox.weights.forms.form import Balance, Form
from eqtoolbox.weights.forms.gram import Gram, MatrixLeg
from eqtoolbox.weights.forms.through import Through
from eqtoolbox.weights.orbit.tangent_space import TangentSpace
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters

FARTHEST = 300.0  # exponent that takes a side without counterpart to zero
SETTLED = 1e-13  # imbalance that is rounding in float64
SINGULAR = 1e-13  # ratio of singular values that is rounding

# of a GL(d) matrices A and A^-T of every block, (2, blocks, d, d); else coefficients, or what is
# added to parameters
GroupElement = Tensor | dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """One family taken to its minimum."""

    change: dict[str, Tensor]  # parameters that moved
    imbalance: float  # before
    element: GroupElement  # that moved them
    left: Tensor | None = None  # units or blocks without a minimum, that stayed; None: taken


Step = Callable[[Any, Parameters, bool], Stepped]


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """The balanced parameters, in float64, and how well they are balanced."""

    params: dict[str, Tensor]
    imbalance: float  # largest |n+ - n-| / (n+ + n-) of a unit in the last round; rounding is 1e-16
    rounds: int
    path: tuple[tuple[ContinuousSymmetry, GroupElement], ...] = ()  # without limits: how it is got
    left: Mapping[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # units that stay, by symmetry


@checked
def canonical(
    symmetries: Sequence[ContinuousSymmetry],
    params: Parameters,
    *,
    settled: float = SETTLED,
    max_rounds: int = 2000,
    limits: bool = True,
) -> Canonical:
    """The canonical point of the orbit of `params` under all of `symmetries` together.

    Args:
        symmetries: of the loss, no equivariances.
        params: any point of the orbit.
        settled: imbalance at which to stop.
        max_rounds: rounds through all symmetries.
        limits: take them where the orbit has no minimum; False: leave these units, and note the
            path.

    Raises:
        ValueError: a family has no canonical point in closed form.
    """
    steps = [(_step(s), s) for s in symmetries]
    moved = {n: p.detach().double() for n, p in params.items()}
    path: list[tuple[ContinuousSymmetry, GroupElement]] = []
    left: dict[str, tuple[int, ...]] = {}
    imbalance, rounds = math.inf, 0
    while imbalance > settled and rounds < max_rounds:
        imbalance = 0.0
        for step, symmetry in steps:
            taken = step(symmetry, moved, limits)
            moved.update(taken.change)
            imbalance = max(imbalance, taken.imbalance)
            if taken.left is not None:
                path.append((symmetry, taken.element))
                if bool(taken.left.any()):
                    called = f"{symmetry.family} ({symmetry.name})"
                    left[called] = tuple(taken.left.nonzero()[:, 0].tolist())
        rounds += 1
    return Canonical(params=moved, imbalance=imbalance, rounds=rounds, path=tuple(path), left=left)


def _step(symmetry: ContinuousSymmetry) -> Step:
    reason = "moves what the model is given or gives: it has no canonical point"
    if not symmetry.equivariant:
        if symmetry.form.balance is not None:
            return STEPS[symmetry.form.balance]
        reason = symmetry.form.unbalanced
    raise ValueError(f"{symmetry.family} ({symmetry.name}) {reason}")


def _balance(symmetry: ContinuousSymmetry, params: Parameters, limits: bool) -> Stepped:
    """Both sides of every unit to the same norm."""
    plus, minus = sides(symmetry.form, params)
    empty = (plus == 0) | (minus == 0)
    still = (plus + minus == 0) if limits else empty
    s = (torch.where(still, 0.0, (minus / plus).log()) / (4 * symmetry.form.power)).clamp(
        -FARTHEST, FARTHEST
    )
    whole = torch.zeros(symmetry.dimension, dtype=s.dtype, device=s.device)
    whole[: len(s)] = s
    if isinstance(symmetry.form, Gram):
        whole[len(s) :] = _phases(symmetry.form, params)
    gap = torch.where(still, 0.0, (plus - minus).abs() / (plus + minus))
    return Stepped(
        change=symmetry.transform(params, whole),
        imbalance=float(gap.max()),
        element=whole,
        left=None if limits else empty & (plus + minus > 0),
    )


def sides(form: Form, params: Parameters) -> tuple[Tensor, Tensor]:
    """n+ and n- of every unit, float64: squared norms of what grows and of what shrinks."""
    units = form.blocks if isinstance(form, Gram) else form.dimension
    found = torch.zeros(2, units, dtype=torch.float64, device=params[form.names[0]].device)
    if isinstance(form, Gram):
        for part in form.legs:
            squares = part.gather(params[part.name]).square().sum((1, 2, 3))
            found[int(part.sign < 0)] += squares
        return found[0], found[1]
    assert isinstance(form, Diagonal), f"{type(form).__name__} has no sides"
    for leg in form.legs:
        each = params[leg.name].double().reshape(leg.before, leg.length, leg.after)
        own = each.square().sum((0, 2))[leg.positions.to(each.device)]
        rates, into = leg.rates.to(own), leg.units.to(own.device)
        for k, rate in enumerate((rates.clamp_min(0), -rates.clamp_max(0))):
            found[k].index_add_(0, into, rate * own)
    return found[0], found[1]


def _phases(form: Gram, params: Parameters) -> Tensor:
    """Angles that turn the pairs of sign + onto their principal axes, as `_upright` has them."""
    pairs = _stack(form, params, 1)  # (blocks, 2, columns)
    gram = pairs @ pairs.mT
    angle = -0.5 * torch.atan2(2 * gram[:, 0, 1], gram[:, 0, 0] - gram[:, 1, 1])
    first = angle.cos()[:, None] * pairs[:, 0] - angle.sin()[:, None] * pairs[:, 1]
    return torch.where(_upright(first) < 0, angle + torch.pi, angle)


def _upright(rows: Tensor) -> Tensor:
    """1, or -1 for rows whose largest entry is negative."""
    largest = rows.gather(-1, rows.abs().argmax(-1, keepdim=True))[..., 0]
    return torch.where(largest < 0, -1.0, 1.0).to(rows)


def _normalise(symmetry: ContinuousSymmetry, params: Parameters, limits: bool) -> Stepped:
    """The weights of every scale group to norm one."""
    square = 2 * symmetry.charge(params)
    s = torch.where(square > 0, -0.5 * square.log(), 0.0) / symmetry.form.power
    gap = torch.where(square > 0, (square - 1).abs() / (square + 1), 0.0)
    return Stepped(
        change=symmetry.transform(params, s),
        imbalance=float(gap.max()),
        element=s,
        left=None if limits else square == 0,
    )


def _centre(symmetry: ContinuousSymmetry, params: Parameters, limits: bool) -> Stepped:
    """All charges to zero, the shortest way: the mean of every group that is shifted on its own."""
    sums, scale = symmetry.charge(params), symmetry.charge_scale(params).clamp_min(1e-300)
    shift = -sums / symmetry.lengths(params).square()
    element: GroupElement = shift
    moved = symmetry.transform(params, shift)
    if bool((symmetry.charge(moved).abs() > 1e-9 * scale).any()):  # generators are not orthogonal
        own = {n: params[n] for n in symmetry.names}
        moved = TangentSpace([symmetry], own).complement(own)
        element = {n: x - own[n] for n, x in moved.items()}
    gap = float((sums.abs() / scale - 1e-13).clamp_min(0).max())
    none = None if limits else torch.zeros(1, dtype=torch.bool)
    return Stepped(change=moved, imbalance=gap, element=element, left=none)


def _absorb(symmetry: ContinuousSymmetry, params: Parameters, limits: bool) -> Stepped:
    """The shifted bias to zero."""
    form: Through = symmetry.form  # type: ignore[assignment]
    bias = form.own(params)
    return Stepped(
        change=symmetry.transform(params, -bias),
        imbalance=float(bias.abs().max() > 0),
        element=-bias,
        left=None if limits else torch.zeros(1, dtype=torch.bool),
    )


def _factor(symmetry: ContinuousSymmetry, params: Parameters, limits: bool) -> Stepped:
    """X X^T = Y Y^T for the legs of every block."""
    form: Gram = symmetry.form  # type: ignore[assignment]
    stacks = [_stack(form, params, sign) for sign in (1, -1)]
    grams = [s @ s.mT for s in stacks]
    gap = (grams[0] - grams[1]).flatten(1).norm(dim=1)
    size = (grams[0] + grams[1]).flatten(1).norm(dim=1).clamp_min(1e-300)
    (qx, lx), (qy, ly) = (torch.linalg.qr(s.mT) for s in stacks)  # X^T = qx lx
    u, s, v = torch.linalg.svd(ly @ lx.mT)
    k = s.shape[-1]
    root = s.sqrt()[:, :, None]
    balanced = [root * v[:, :k] @ qx.mT, root * u.mT[:, :k] @ qy.mT]
    sign = _upright(balanced[0])[..., None]
    balanced = [sign * new for new in balanced]
    left, element = None, torch.zeros(0)
    if not limits:
        left = _singular(lx, form.size) | _singular(ly, form.size)
        one = torch.eye(form.size).to(lx).expand(2, len(left), -1, -1)
        element = one if bool(left.all()) else _matrices(sign * root, (lx, ly), (v, u.mT))
        element = torch.where(left[:, None, None], one, element)
    moved: dict[str, Tensor] = {}
    for side, new in zip((1, -1), balanced, strict=True):
        rows = new.new_zeros(new.shape[0], form.size, new.shape[2])
        rows[:, :k] = new
        begin = 0
        for leg in _legs(form, side):
            old = moved.get(leg.name, params[leg.name])
            blocks, copies, size_, rest = (was := leg.gather(old)).shape
            part = rows[:, :, begin : begin + copies * rest]
            begin += copies * rest
            part = part.reshape(blocks, size_, copies, rest).transpose(1, 2)
            part = part if left is None else torch.where(left[:, None, None, None], was, part)
            moved[leg.name] = leg.scatter(part, old.clone())
    gaps = gap / size if left is None else torch.where(left, 0.0, gap / size)
    return Stepped(change=moved, imbalance=float(gaps.max()), element=element, left=left)


def _singular(factor: Tensor, size: int) -> Tensor:
    """Blocks of which a side spans less than all `size` directions: no T balances them."""
    if factor.shape[-2] < size:
        return torch.ones(len(factor), dtype=torch.bool, device=factor.device)
    values: Tensor = torch.linalg.svdvals(factor)
    return values[:, -1] <= SINGULAR * values[:, 0]


def _matrices(root: Tensor, factors: Sequence[Tensor], bases: Sequence[Tensor]) -> Tensor:
    """T = X' X^-1 and T^-T = Y' Y^-1, from X^T = q lx and Y^T = q ly; garbage where singular."""
    pairs = zip(factors, bases, strict=True)
    solved = [torch.linalg.solve_ex(x, (root * basis).mT)[0].mT for x, basis in pairs]
    return torch.stack(solved)


def _legs(form: Gram, sign: int) -> list[MatrixLeg]:
    return [leg for leg in form.legs if leg.sign == sign]


def _stack(form: Gram, params: Parameters, sign: int) -> Tensor:
    """All legs of one sign side by side, (blocks, d, columns)."""
    parts = [leg.gather(params[leg.name]).transpose(1, 2) for leg in _legs(form, sign)]
    return torch.cat([p.flatten(2) for p in parts], dim=2)


STEPS: dict[Balance, Step] = {
    "equal sides": _balance,
    "norm one": _normalise,
    "equal grams": _factor,
    "mean zero": _centre,
    "bias zero": _absorb,
}
