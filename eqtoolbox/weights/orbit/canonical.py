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

A form states which of these is its own.

Where one side of a unit is zero the orbit has no minimum and its limit is taken: both are zero.

References:
    Kempf & Ness 1979, The length of vectors in representation spaces; Du, Hu & Lee 2018
    (arXiv 1806.00900).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.weights.forms.form import Balance
from eqtoolbox.weights.forms.gram import Gram, MatrixLeg
from eqtoolbox.weights.forms.through import Through
from eqtoolbox.weights.orbit.tangent_space import TangentSpace
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters

FARTHEST = 300.0  # exponent that takes a side without counterpart to zero
SETTLED = 1e-13  # imbalance that is rounding in float64

Step = Callable[[Any, Parameters], tuple[dict[str, Tensor], float]]


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """The balanced parameters, in float64, and how well they are balanced."""

    params: dict[str, Tensor]
    imbalance: float  # largest |n+ - n-| / (n+ + n-) of a unit in the last round; rounding is 1e-16
    rounds: int


@checked
def canonical(
    symmetries: Sequence[ContinuousSymmetry],
    params: Parameters,
    *,
    settled: float = SETTLED,
    max_rounds: int = 2000,
) -> Canonical:
    """The canonical point of the orbit of `params` under all of `symmetries` together.

    Args:
        symmetries: of the loss, no equivariances.
        params: any point of the orbit.
        settled: imbalance at which to stop.
        max_rounds: rounds through all symmetries.

    Raises:
        ValueError: a family has no canonical point in closed form.
    """
    steps = [(_step(s), s) for s in symmetries]
    moved = {n: p.detach().double() for n, p in params.items()}
    imbalance, rounds = math.inf, 0
    while imbalance > settled and rounds < max_rounds:
        imbalance = 0.0
        for step, symmetry in steps:
            change, was = step(symmetry, moved)
            moved.update(change)
            imbalance = max(imbalance, was)
        rounds += 1
    return Canonical(params=moved, imbalance=imbalance, rounds=rounds)


def _step(symmetry: ContinuousSymmetry) -> Step:
    reason = "moves what the model is given or gives: it has no canonical point"
    if not symmetry.equivariant:
        if symmetry.form.balance is not None:
            return STEPS[symmetry.form.balance]
        reason = symmetry.form.unbalanced
    raise ValueError(f"{symmetry.family} ({symmetry.name}) {reason}")


def _balance(symmetry: ContinuousSymmetry, params: Parameters) -> tuple[dict[str, Tensor], float]:
    """Both sides of every unit to the same norm."""
    charge, total = symmetry.charge(params), symmetry.charge_scale(params)
    plus, minus = (total + charge).clamp_min(0), (total - charge).clamp_min(0)
    ratio = torch.where(total > 0, (minus / plus).log(), 0.0)
    s = (ratio / (4 * symmetry.form.power)).clamp(-FARTHEST, FARTHEST)
    whole = torch.zeros(symmetry.dimension, dtype=s.dtype, device=s.device)
    whole[: len(s)] = s  # rope has phases besides, which are orthogonal
    imbalance = torch.where(total > 0, charge.abs() / total, 0.0)
    return symmetry.transform(params, whole), float(imbalance.max())


def _normalise(symmetry: ContinuousSymmetry, params: Parameters) -> tuple[dict[str, Tensor], float]:
    """The weights of every scale group to norm one."""
    square = 2 * symmetry.charge(params)
    s = torch.where(square > 0, -0.5 * square.log(), 0.0) / symmetry.form.power
    gap = torch.where(square > 0, (square - 1).abs() / (square + 1), 0.0)
    return symmetry.transform(params, s), float(gap.max())


def _centre(symmetry: ContinuousSymmetry, params: Parameters) -> tuple[dict[str, Tensor], float]:
    """All charges to zero, the shortest way: the mean of every group that is shifted on its own."""
    sums, scale = symmetry.charge(params), symmetry.charge_scale(params).clamp_min(1e-300)
    moved = symmetry.transform(params, -sums / symmetry.lengths(params).square())
    if bool((symmetry.charge(moved).abs() > 1e-9 * scale).any()):  # generators are not orthogonal
        own = {n: params[n] for n in symmetry.names}
        moved = TangentSpace([symmetry], own).complement(own)
    return moved, float((sums.abs() / scale - 1e-13).clamp_min(0).max())


def _absorb(symmetry: ContinuousSymmetry, params: Parameters) -> tuple[dict[str, Tensor], float]:
    """The shifted bias to zero."""
    form: Through = symmetry.form  # type: ignore[assignment]
    bias = form.own(params)
    return symmetry.transform(params, -bias), float(bias.abs().max() > 0)


def _factor(symmetry: ContinuousSymmetry, params: Parameters) -> tuple[dict[str, Tensor], float]:
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
    moved: dict[str, Tensor] = {}
    for sign, new in zip((1, -1), balanced, strict=True):
        rows = new.new_zeros(new.shape[0], form.size, new.shape[2])
        rows[:, :k] = new
        begin = 0
        for leg in _legs(form, sign):
            old = moved.get(leg.name, params[leg.name])
            blocks, copies, size_, rest = leg.gather(old).shape
            part = rows[:, :, begin : begin + copies * rest]
            begin += copies * rest
            part = part.reshape(blocks, size_, copies, rest).transpose(1, 2)
            moved[leg.name] = leg.scatter(part, old.clone())
    return moved, float((gap / size).max())


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
