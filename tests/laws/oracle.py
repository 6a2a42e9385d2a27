"""The oracle: everything a form evaluates, generator by generator, from its finite group alone.

K_i is the derivative of T_s along generator i by forward mode; charges come from their definition
as integrals of K along the ray from zero, Q_i = <K_i, theta> / 2 or <K_i, theta>.
"""

import torch
from torch import Tensor

from eqtoolbox.weights.forms.gram import Gram
from eqtoolbox.weights.parameter import ContinuousSymmetry

Params = dict[str, Tensor]


def generators(symmetry: ContinuousSymmetry, params: Params) -> list[Params]:
    """K_i(theta) of every generator, zero where nothing moves."""
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    found = []
    for unit in torch.eye(symmetry.dimension, dtype=torch.float64):
        orbit = lambda s, unit=unit: symmetry.transform(params, s * unit)
        _, slope = torch.func.jvp(orbit, (zero,), (one,))
        found.append({**{n: torch.zeros_like(p) for n, p in params.items()}, **slope})
    return found


def inner(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[n] * b[n]).sum() for n in a]).sum()


def slopes(symmetry: ContinuousSymmetry, params: Params, cotangent: Params) -> Tensor:
    return torch.stack([inner(k, cotangent) for k in generators(symmetry, params)])


def lengths(symmetry: ContinuousSymmetry, params: Params) -> Tensor:
    return torch.stack([inner(k, k).sqrt() for k in generators(symmetry, params)])


def conserving(symmetry: ContinuousSymmetry) -> Tensor:
    """Coefficients of the generators that are gradients, (charges, dimension), as documented."""
    d = symmetry.dimension
    form = symmetry.form
    if symmetry.charges in (0, d):
        return torch.eye(d, dtype=torch.float64)[: symmetry.charges]
    assert isinstance(form, Gram)
    blocks, size = form.blocks, form.size
    if symmetry.charges == blocks:  # the scalings of rotary pairs come first
        return torch.eye(d, dtype=torch.float64)[:blocks]
    rows = []
    for block in range(blocks):
        for i in range(size):
            for j in range(i, size):
                a = torch.zeros(blocks, size, size, dtype=torch.float64)
                a[block, i, j] = a[block, j, i] = 1.0 if i == j else 0.5**0.5
                rows.append(a.flatten())
    return torch.stack(rows)


def pairing(symmetry: ContinuousSymmetry, params: Params, direction: Params) -> Tensor:
    return conserving(symmetry) @ slopes(symmetry, params, direction)


def charge(symmetry: ContinuousSymmetry, params: Params) -> Tensor:
    """The integral of <K(t theta), theta> over t from 0 to 1, K linear or constant: Simpson."""
    at = [{n: t * p for n, p in params.items()} for t in (0.0, 0.5, 1.0)]
    ends = [pairing(symmetry, there, params) for there in at]
    return (ends[0] + 4 * ends[1] + ends[2]) / 6


def finite_step(symmetry: ContinuousSymmetry, params: Params, direction: Params) -> Tensor:
    after = {n: p + direction[n] for n, p in params.items()}
    change = charge(symmetry, after) - charge(symmetry, params)
    return change - pairing(symmetry, params, direction)


def scale(symmetry: ContinuousSymmetry, params: Params) -> Tensor:
    """The sum of what every tensor could give by itself, for families whose legs are all apart."""
    rows = []
    for name in symmetry.names:
        if not symmetry.form.quadratic:
            alone = [g[name].abs() * params[name].abs() for g in generators(symmetry, params)]
            rows.append(conserving(symmetry).abs() @ torch.stack([a.sum() for a in alone]))
            continue
        own = {n: p if n == name else torch.zeros_like(p) for n, p in params.items()}
        rows.append(_bound(symmetry, charge(symmetry, own).abs()))
    return torch.stack(rows).sum(0)


def _bound(symmetry: ContinuousSymmetry, charges: Tensor) -> Tensor:
    """Of <(E_ij + E_ji) / sqrt 2, X X^T> / 2 by Cauchy and Schwarz; else the charge itself."""
    form = symmetry.form
    if not isinstance(form, Gram) or symmetry.charges in (0, form.blocks):
        return charges
    i, j = torch.triu_indices(form.size, form.size)
    table = charges.reshape(form.blocks, -1)
    squares = 2 * table[:, i == j]
    weights = torch.full((len(i),), 0.5**0.5, dtype=torch.float64).masked_fill(i == j, 0.5)
    return (weights * (squares[:, i] * squares[:, j]).sqrt()).reshape(-1)
