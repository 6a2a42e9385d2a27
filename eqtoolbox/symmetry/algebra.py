"""Continuous symmetries found in a trained network: the nullspace of its polarised gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.gradients import valued
from eqtoolbox.symmetry.through import Through

Function = Annotated[Callable[[Tensor], Tensor], takes(1, "of a batch")]
_GAP = 10.0  # ratio of neighbouring singular values that separates symmetries from the rest
_OUTPUTS = 16  # outputs differentiated one by one
_CLOSED = 0.1  # relative part of a commutator outside the algebra, and of an invariant form


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """A Lie algebra of linear maps A that leave a function unchanged, f(exp(A) x) = f(x)."""

    dimension: int | None  # symmetries found; None: not identifiable, see note
    basis: Tensor  # (dimension, d, d), float64, orthonormal
    singular_values: Tensor  # (d^2,), ascending; rms Lie derivative over |J| |x|
    gap: float  # ratio of the first value outside to the last one inside; inf for exact zeros
    null_gap: float  # largest such ratio when gradients and points are shuffled
    closure: float  # largest relative part of a commutator outside; NaN below two dimensions
    form: Tensor | None  # (d, d) symmetric M with A^T M + M A = 0 for all; None: none
    name: str  # such as so(3), lorentz so(1,3), gl part; "" when not identifiable
    note: str = field(default="")


@checked
def discover_data(
    function: Function,
    inputs: Tensor,
    *,
    equivariant: bool = False,
    generator: torch.Generator | None = None,
) -> Discovery:
    """The linear symmetries of a function of k vectors in R^d, read off its derivatives.

    For every sample n and output o the row sum_k dF_o/dx_ki x_kj, over |J| |x|, is the Lie
    derivative along each A_ij; a symmetry is a vector that all rows annihilate. The singular values
    below the largest gap count the algebra, if that gap beats the one of shuffled data (gradients
    of one sample with the points of another), or if the values are rounding.

    Not identifiable, with a note: a constant function or one without a derivative, fewer rows than
    d^2, points that do not span R^d. Discrete symmetries are not found (dimension 0): score them
    with equivariance_error. Samples must not see each other, as in a batch norm in train mode.

    Args:
        function: f, (batch, ...) -> (batch, outputs...), differentiable.
        inputs: x, (N, d) or (N, k, d); all k vectors are moved by the same A.
        equivariant: look for f(exp(A) x) = exp(A) f(x) instead, outputs being vectors like x.
        generator: shuffles; a new one with seed 0 unless given.

    Returns:
        The algebra, its basis, spectrum, gap, closure, invariant form and name.

    Reference: Moskalev et al. 2022, arXiv 2210.04345 (LieGG), outputs kept apart instead of summed.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = discover_data(lambda x: x.square().sum(-1, keepdim=True), x)
        >>> found.dimension, found.name
        (3, 'so(3)')
    """
    if not isinstance(inputs, Tensor) or inputs.dim() not in (2, 3) or not len(inputs):
        raise ValueError(
            "inputs must be (N, d) or (N, k, d): N samples of k vectors that turn together"
        )
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must be floating point, got {inputs.dtype}")
    rng = torch.Generator().manual_seed(0) if generator is None else generator
    x = inputs.detach()
    values, gradients = _gradients(function, x, rng)
    points = (x[:, None] if x.dim() == 2 else x).to(torch.float64)
    d, eps = x.shape[-1], torch.finfo(x.dtype).eps
    spread = torch.linalg.svdvals(points.reshape(-1, d))
    steepness = gradients.flatten(2).norm(dim=2)
    own = values if equivariant else None
    if equivariant and (gradients.shape[1] % d or values.shape != gradients.shape[:2]):
        raise ValueError(f"equivariant outputs are vectors of length {d}, got {values.shape[1]}")
    spectrum, vectors = _spectrum(gradients, points, own)
    why = ""
    if not torch.isfinite(gradients).all():
        raise FloatingPointError("gradients must be finite, got NaN or infinity; check the inputs")
    if float(steepness.max()) <= 100 * eps * _level(function, x):
        why = "the function does not change with its input, or has no derivative"
    elif steepness.numel() < d * d:
        why = f"{steepness.numel()} rows for {d * d} unknowns: give more samples"
    elif float(spread[-1]) <= 1e-6 * float(spread[0]):
        why = "the points do not span the space: project them to their span first"
    if why:
        return _nothing(spectrum, why)
    order = torch.randperm(len(points), generator=rng, device=rng.device).to(x.device)
    shuffled = None if own is None else own[order]
    null = _largest_gap(_spectrum(gradients, points[order], shuffled)[0], eps)[1]
    count, gap = _largest_gap(spectrum, eps)
    if count == 0 or gap < max(_GAP, 2.0 * null):
        return _nothing(spectrum, "", gap=gap, null=null)
    basis = vectors[:, :count].T.reshape(count, d, d)
    form = invariant_form(basis)
    return Discovery(
        dimension=count,
        basis=basis,
        singular_values=spectrum,
        gap=gap,
        null_gap=null,
        closure=closure(basis),
        form=form,
        name=_name(basis, form),
    )


def closure(basis: Tensor) -> float:
    """Largest relative part of a commutator [A_i, A_j] outside the span of the basis.

    Example:
        >>> closure(torch.eye(4, dtype=torch.float64).reshape(4, 2, 2))
        0.0
    """
    flat = torch.linalg.qr(basis.flatten(1).T)[0]
    worst = math.nan
    for i in range(len(basis)):
        for j in range(i):
            c = (basis[i] @ basis[j] - basis[j] @ basis[i]).flatten()
            size = float(c.norm())
            outside = float((c - flat @ (flat.T @ c)).norm()) / size if size > 1e-9 else 0.0
            worst = outside if math.isnan(worst) else max(worst, outside)
    return worst


def invariant_form(basis: Tensor) -> Tensor | None:
    """The symmetric M with A^T M + M A = 0 for every A, if there is one up to scale.

    Example:
        >>> turn = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]], dtype=torch.float64)
        >>> torch.allclose(invariant_form(turn), torch.eye(2, dtype=torch.float64))
        True
    """
    d = basis.shape[-1]
    unit = torch.eye(d * d, dtype=torch.float64).reshape(d * d, d, d)
    symmetric = (unit + unit.mT) / 2
    rows = torch.cat([(a.T @ symmetric + symmetric @ a).flatten(1).T for a in basis.cpu()])
    skew = (unit - unit.mT).flatten(1).T
    _, values, right = torch.linalg.svd(torch.cat([rows, skew]))
    if float(values[-1]) > _CLOSED or float(values[-2]) < 3 * float(values[-1]) + 1e-9:
        return None
    m = right[-1].reshape(d, d)
    m = (m + m.T) / 2
    sign = float(m.trace().sign() if m.trace().abs() > 1e-6 else m[0, 0].sign())
    form: Tensor = sign * m / torch.linalg.eigvalsh(m).abs().max()
    return form


def _gradients(function: Function, x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """f(x) as (N, outputs) and dF_o/dx as (N, outputs, k, d), every output by itself.

    One backward an output, since samples do not mix; of many outputs, random sums of them.
    """
    point = x.clone().requires_grad_()
    with torch.enable_grad():
        with Through():
            y = function(point).flatten(1)
        if y.shape[1] > _OUTPUTS:
            shape = (y.shape[1], _OUTPUTS)
            y = y @ torch.randn(shape, generator=rng, device=rng.device).to(y) / y.shape[1] ** 0.5
        rows = []
        for o in range(y.shape[1]):
            row = None
            if y.requires_grad:
                total = y[:, o].sum()
                (row,) = torch.autograd.grad(total, point, retain_graph=True, allow_unused=True)
            rows.append(torch.zeros_like(x) if row is None else row)
    jacobian = torch.stack(rows, 1).detach().to(torch.float64)
    jacobian = jacobian[:, :, None] if x.dim() == 2 else jacobian
    return y.detach().to(torch.float64), jacobian


def _level(function: Function, x: Tensor) -> float:
    with torch.no_grad():
        size = float(valued(function, x).double().abs().mean())
    return size / float(x.double().norm(dim=-1).mean().clamp(min=1e-300))


def _spectrum(gradients: Tensor, points: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
    """Singular values (ascending, root mean square of a row's product) and right vectors.

    Rows J A x, or J A x - A f where values (N, outputs) turn like points.
    """
    rows = torch.einsum("noki,nkj->noij", gradients, points)
    size = gradients.flatten(2).norm(dim=2) * points.flatten(1).norm(dim=1)[:, None]
    if values is not None:
        d = points.shape[-1]
        vectors = values.reshape(len(values), -1, d)  # output o = (vector m, component i)
        own = torch.einsum("nmj,li->nmlij", vectors, torch.eye(d).to(vectors))
        rows = rows - own.reshape(len(values), -1, d, d)
        size = size + vectors.norm(dim=2).repeat_interleave(d, dim=1)
    rows = rows.flatten(2).flatten(0, 1) / size.flatten().clamp(min=1e-300)[:, None]
    weights = size.flatten() > 0
    few = int(weights.sum()) < rows.shape[1]
    _, found, right = torch.linalg.svd(rows[weights], full_matrices=few)
    padded = torch.zeros(right.shape[0], dtype=torch.float64, device=rows.device)
    padded[: len(found)] = found / math.sqrt(max(int(weights.sum()), 1))
    return padded.flip(0), right.T.flip(1)


def _largest_gap(values: Tensor, eps: float) -> tuple[int, float]:
    """How many values lie below the largest ratio of neighbours, and that ratio."""
    floor = 10.0 * eps * float(values[-1])
    raised = values.clamp(min=max(floor, 1e-300))
    ratios = raised[1:] / raised[:-1]
    best = int(ratios.argmax())
    return best + 1, float(ratios[best])


def _nothing(values: Tensor, why: str, gap: float = math.nan, null: float = math.nan) -> Discovery:
    d = math.isqrt(len(values))
    return Discovery(
        dimension=None if why else 0,
        basis=torch.zeros(0, d, d, dtype=torch.float64),
        singular_values=values,
        gap=gap,
        null_gap=null,
        closure=math.nan,
        form=None,
        name="",
        note=why or "no gap beyond that of shuffled data: no continuous linear symmetry",
    )


def _name(basis: Tensor, form: Tensor | None) -> str:
    """so(d), so(p,q) when the invariant form and the dimension say so."""
    count, d = len(basis), basis.shape[-1]
    if count == 1:
        a = basis[0]
        skew = float((a + a.T).norm() / a.norm()) < _CLOSED
        return "so(2)" if skew else "one-parameter"
    closed = closure(basis) < _CLOSED
    if form is None or count != d * (d - 1) // 2 or not closed:
        return f"{count}-dimensional{'' if closed else ', not closed'}"
    signs = torch.linalg.eigvalsh(form)
    positive = int((signs > _CLOSED).sum())
    negative = int((signs < -_CLOSED).sum())
    if positive + negative < d:
        return f"{count}-dimensional"
    low, high = sorted((positive, negative))
    if low == 0:
        return f"so({d})"
    return f"so({low},{high})" + (" (Lorentz)" if (low, high) == (1, 3) else "")
