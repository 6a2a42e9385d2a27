"""Continuous symmetries found in a trained network: the nullspace of its polarised gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from eqtoolbox.expect import notebook
from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.gradients import valued
from eqtoolbox.symmetry.classical import Naming, closure
from eqtoolbox.symmetry.nullspace import GAP, Nullspace, Samples, nullspace
from eqtoolbox.symmetry.through import ThroughModel

Function = Annotated[Callable[[Tensor], Tensor], takes(1, "of a batch")]
_OUTPUTS = 16  # outputs differentiated one by one


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """A Lie algebra of linear maps A that leave a function unchanged, f(exp(A) x) = f(x)."""

    dimension: int | None  # symmetries found; None: not identifiable, see note
    basis: Tensor  # (dimension, d, d), float64, orthonormal
    singular_values: Tensor  # (d^2,), ascending; rms Lie derivative over |J| |x|
    gap: float  # ratio of the first value outside to the last inside, rounding counted as 10 eps
    null_gap: float  # largest such ratio when gradients and points are shuffled
    closure: float  # largest part of a commutator outside; NaN below two dimensions
    form: Tensor | None  # (d, d) symmetric M with A^T M + M A = 0 for all; None: none, or several
    name: str  # so(3), sl(2), su(2) × su(2), ignores 2 of 3 directions, ...; "" if none was found
    note: str = field(default="")

    _repr_html_ = notebook.by_fields


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
    derivative along each A_ij; a symmetry is a vector that all rows annihilate. Inputs are first
    scaled to unit second moment, so that their units change nothing. Directions that no output
    depends on are divided out: with m of them, the d m maps into them are symmetries whatever f
    does, and what remains is a function of d - m coordinates. There, the values below the largest
    gap count the algebra: where they are rounding, or where the gap is above 6.5 and twice that of
    shuffled data (gradients of one sample with the points of another) and there are 2 d^2 rows. A
    direction is ignored if it moves the outputs 20 times less than any direction that is not.

    Not identifiable, with a note: a constant function or one without a derivative, fewer distinct
    rows than d^2, points that do not span R^d, a gap that shuffled data have as well. Discrete
    symmetries are not found (dimension 0): score them with equivariance_error. Samples must not
    see each other, as in a batch norm in train mode.

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
        >>> found = discover_data(lambda x: x[:, :2].norm(dim=-1, keepdim=True), x)
        >>> found.dimension, found.name
        (4, 'so(2), 1 of 3 directions ignored')
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
    own = values if equivariant else None
    if equivariant and (gradients.shape[1] % d or values.shape != gradients.shape[:2]):
        raise ValueError(f"equivariant outputs are vectors of length {d}, got {values.shape[1]}")
    if not torch.isfinite(gradients).all():
        raise FloatingPointError("gradients must be finite, got NaN or infinity; check the inputs")
    spread = torch.linalg.svdvals(points.reshape(-1, d))
    rows = len(torch.unique(points.flatten(1), dim=0)) * gradients.shape[1]
    why = ""
    if float(gradients.flatten(2).norm(dim=2).max()) <= 100 * eps * _level(function, x):
        why = "the function does not change with its input, or has no derivative"
    elif rows < d * d:
        why = f"{rows} rows for {d * d} unknowns: give more samples"
    elif float(spread[-1]) <= 1e-6 * float(spread[0]):
        why = "the points do not span the space: project them to their span first"
    samples = Samples(gradients=gradients, points=points, values=own, eps=eps)
    if why:
        return _nothing(samples.rows().values, why)
    return _discovery(nullspace(samples, rng))


def _discovery(found: Nullspace) -> Discovery:
    count, d = len(found.basis), found.basis.shape[-1]
    if found.why or not count:
        return _nothing(found.singular_values, found.why, gap=found.gap, null=found.null_gap)
    naming = Naming(tolerance=min(0.1, max(1e-3, 10 / found.gap)))
    names = [naming.name(found.related)] if len(found.related) else []
    if found.ignored:
        names.append(f"{found.ignored} of {d} directions ignored")
    return Discovery(
        dimension=count,
        basis=found.basis,
        singular_values=found.singular_values,
        gap=found.gap,
        null_gap=found.null_gap,
        closure=closure(found.basis),
        form=invariant_form(found.basis),
        name=", ".join(names),
    )


def invariant_form(basis: Tensor) -> Tensor | None:
    """The symmetric M with A^T M + M A = 0 for every A, if there is one up to scale.

    Example:
        >>> turn = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]], dtype=torch.float64)
        >>> torch.allclose(invariant_form(turn), torch.eye(2, dtype=torch.float64))
        True
    """
    kept = Naming().forms(basis, 1)
    if len(kept) != 1:
        return None
    m = kept[0]
    sign = float(m.trace().sign() if m.trace().abs() > 1e-6 else m[0, 0].sign())
    form: Tensor = sign * m / torch.linalg.eigvalsh(m).abs().max()
    return form


def _gradients(function: Function, x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """f(x) as (N, outputs) and dF_o/dx as (N, outputs, k, d), every output by itself.

    One backward an output, since samples do not mix; of many outputs, random sums of them.
    """
    point = x.clone().requires_grad_()
    with torch.enable_grad():
        with ThroughModel():
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
        note=why
        or f"largest gap {gap:.2g}, a symmetry needs {GAP:g}: no continuous linear symmetry",
    )
