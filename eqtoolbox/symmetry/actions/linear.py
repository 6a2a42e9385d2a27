"""Linear actions of matrix groups on the last dimension: vectors, axial vectors, tensors, irreps.

All matrices are made in float64 and rounded once, to the dtype of what they move: matrices made in
float32 can be orthogonal and still break S_g S_h = S_gh by 1e-6.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Annotated, Any

import torch
from torch import Tensor

from eqtoolbox.expect.bounds import OWN, takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count, Natural
from eqtoolbox.linalg.tangents import jvp
from eqtoolbox.symmetry.groups.matrices import Rows, matrix


@checked
@dataclass(frozen=True)
class Linear:
    """x -> rho(g) x on the last dimension, rho a function of the group's matrix.

    Elements of a Euclidean group, one row larger than `size`, act by their linear part.

    Args:
        rho: (n, n) -> (d, d), a homomorphism, differentiable.
        size: n; None for that of x's last dimension.

    Example:
        >>> from eqtoolbox.symmetry.groups.matrices import SO2
        >>> quarter = SO2().element(SO2().generators()[0], torch.pi / 2)
        >>> vectors(quarter, torch.tensor([1.0, 0.0])).round().abs()
        tensor([0., 1.])
    """

    rho: Annotated[Callable[[Tensor], Tensor], takes(1, "of a matrix")]
    size: Count | None = None

    def __call__(self, g: Rows, x: Tensor) -> Tensor:
        return applied(self.rho(self._part(matrix(g), x)), x)

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """d rho(A) x, exact."""
        part = self._part(generator, x)
        at = torch.eye(len(part), dtype=torch.float64)
        change: Tensor = jvp(self.rho, (at,), (part.to(torch.float64),))[1]
        return applied(change, x)

    def _part(self, m: Tensor, x: Tensor) -> Tensor:
        size = (x.shape[-1] if x.dim() else 1) if self.size is None else self.size
        if len(m) == size + 1 and not m[-1, :-1].any():  # of a Euclidean group
            return m[:-1, :-1]
        if len(m) != size:
            raise ValueError(
                f"expected matrices of {size} rows for shape {tuple(x.shape)}, or of a Euclidean "
                f"group with one row more, got {len(m)}; the last dimension is the one that turns"
            )
        return m


def applied(m: Tensor, x: Tensor) -> Tensor:
    if x.shape[-1] != len(m):
        raise ValueError(f"expected a last dimension of {len(m)}, got shape {tuple(x.shape)}")
    return x @ m.to(x).mT


def _itself(m: Tensor) -> Tensor:
    return m


def _axial(m: Tensor) -> Tensor:
    return _determinant(m) * m


def _determinant(m: Tensor) -> Tensor:
    det: Tensor = torch.linalg.det(m)
    return det.reshape(1, 1)


vectors = Linear(_itself)  # positions about the origin, velocities, forces, four-vectors
axial_vectors = Linear(_axial, size=3)  # angular momenta, magnetic moments: even under inversion


@checked
@dataclass(frozen=True)
class PseudoScalars:
    """x -> det(R) x: volumes with a sign, helicities; `size` is that of the rotations."""

    size: Count = 3

    def __call__(self, g: Rows, x: Tensor) -> Tensor:
        m = matrix(g)[: self.size, : self.size]
        return x * _determinant(m).round().to(x)[0, 0]

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """Zero: a rotation does not change it."""
        return torch.zeros_like(x)


pseudo_scalars = PseudoScalars()


def _power(m: Tensor, rank: int) -> Tensor:
    return reduce(torch.kron, [m] * rank)


@checked
@dataclass(frozen=True)
class Tensors:
    """Tensors of a rank: T -> R T R^T for rank 2, on the last `rank` dimensions of length n.

    Example:
        >>> from eqtoolbox.symmetry.groups.matrices import SO3
        >>> (g,) = SO3().sample(1, torch.Generator().manual_seed(0))
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> bool(torch.allclose(Tensors(2)(g, x), x))
        True
    """

    rank: Natural

    def __call__(self, g: Rows, x: Tensor) -> Tensor:
        return self._flat(x, lambda flat, act: act(g, flat))

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """The sum of the generator on every index."""
        return self._flat(x, lambda flat, act: act.tangent(generator, flat))

    def _flat(self, x: Tensor, move: Callable[[Tensor, Linear], Tensor]) -> Tensor:
        size = x.shape[-1]
        if x.dim() < self.rank or any(n != size for n in x.shape[-self.rank :]):
            raise ValueError(f"expected {self.rank} equal last dimensions, got {tuple(x.shape)}")
        action = Linear(lambda m: _power(m, self.rank), size=size)
        return move(x.flatten(-self.rank), action).reshape(x.shape)


@dataclass(frozen=True)
class Positions:
    """x -> R x + t on the last dimension: the action of a Euclidean group on points.

    Example:
        >>> from eqtoolbox.symmetry.groups.matrices import SE3
        >>> move = SE3().element(SE3().generators()[3], 2.0)
        >>> Positions()(move, torch.zeros(1, 3))
        tensor([[2., 0., 0.]])
    """

    def __call__(self, g: Rows, x: Tensor) -> Tensor:
        m = matrix(g)
        moved = vectors(g, x)
        return moved + m[:-1, -1].to(x) if len(m) == x.shape[-1] + 1 else moved

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """A x + b."""
        moved = vectors.tangent(generator, x)
        shifted = len(generator) == x.shape[-1] + 1
        return moved + generator[:-1, -1].to(x) if shifted else moved


positions = Positions()


@dataclass(frozen=True)
class Poses:
    """T -> g T on homogeneous matrices (..., n, n): robot poses under SE(2) or SE(3)."""

    def __call__(self, g: Rows, x: Tensor) -> Tensor:
        return matrix(g).to(x) @ x

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """A T."""
        return generator.to(x) @ x


poses = Poses()


def adjoint(m: Tensor) -> Tensor:
    """Ad of a rigid motion (4, 4) on twists (v, w): w -> R w, v -> R v + t x R w; (6, 6)."""
    turn, move = m[:-1, :-1], m[:-1, -1]
    zero = torch.zeros_like(move[0])
    cross = torch.stack(
        [
            torch.stack([zero, -move[2], move[1]]),
            torch.stack([move[2], zero, -move[0]]),
            torch.stack([-move[1], move[0], zero]),
        ]
    )
    upper = torch.cat([turn, cross @ turn], dim=1)
    return torch.cat([upper, torch.cat([torch.zeros_like(turn), turn], dim=1)])


twists = Linear(adjoint, size=4)


@checked
def irrep(degree: int, parity: int | None = None) -> Linear:
    """The irreducible action of O(3) on 2 · degree + 1 numbers, in a basis of traceless tensors.

    D = B^T (R ⊗ ... ⊗ R) B with B an orthonormal basis of symmetric traceless tensors; for another
    basis, such as e3nn's, see `eqtoolbox.symmetry.actions.foreign`.

    Args:
        degree: 0 scalar, 1 vector, 2 quadrupole, up to 5.
        parity: sign under inversion; (-1)^degree unless given, the other one makes it a pseudo one.

    Example:
        >>> from eqtoolbox.symmetry.groups.matrices import O3
        >>> (g,) = O3().sample(1, torch.Generator().manual_seed(0))
        >>> irrep(2)(g, torch.ones(4, 5)).shape
        torch.Size([4, 5])
    """
    if not (isinstance(degree, int) and 0 <= degree <= 5):
        raise ValueError(f"degree must be 0 .. 5, got {degree!r}")
    if parity not in (None, 1, -1):
        raise ValueError(f"parity must be 1, -1 or None, got {parity!r}")
    odd = parity is not None and parity != (-1) ** degree

    def rho(m: Tensor) -> Tensor:
        if degree == 0:
            return _determinant(m) if odd else torch.ones_like(m[:1, :1])
        basis = _traceless(degree)
        d = basis.mT @ _power(m, degree) @ basis
        return _determinant(m) * d if odd else d

    return Linear(rho, size=3)


@lru_cache
def _traceless(degree: int) -> Tensor:
    """Orthonormal basis of symmetric traceless tensors of R^3, (3^degree, 2 degree + 1)."""
    if degree == 1:
        return torch.eye(3, dtype=torch.float64)
    count = 3**degree
    tensors = torch.eye(count, dtype=torch.float64).reshape(count, *[3] * degree)
    tests: list[Any] = [tensors - tensors.transpose(i, i + 1) for i in range(1, degree)]
    traces = torch.diagonal(tensors, dim1=1, dim2=2).sum(-1)
    rows = torch.cat([t.reshape(count, -1).T for t in [*tests, traces]])
    right: Tensor = torch.linalg.svd(rows)[2]
    return right[-(2 * degree + 1) :].T.contiguous()


@checked
@dataclass(frozen=True, eq=False)  # a tensor has no hash
class Powers:
    """x -> M^g x on the last dimension, for a matrix M of finite order: acts by `Cyclic(order)`.

    A pair of such matrices, one for the inputs and one for the outputs, is a claim:
    `Equivariance(Cyclic(n), Powers(a), Powers(b))`, n a multiple of both orders.

    Args:
        matrix: (d, d), with M^n = 1 for some n <= 64.

    Raises:
        ValueError: it is not square, or no such power is found.

    Example:
        >>> quarter = Powers(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
        >>> quarter.order, quarter(1, torch.tensor([1.0, 0.0]))
        (4, tensor([0., 1.]))
    """

    matrix: Annotated[Tensor, OWN]

    def __post_init__(self) -> None:
        try:
            m = torch.as_tensor(self.matrix).detach()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"matrix must be a square tensor, got {self.matrix!r}") from None
        if m.is_complex():
            raise TypeError(f"matrix must be real, got {m.dtype}")
        m = m.to(torch.float64)
        if m.dim() != 2 or m.shape[0] != m.shape[1] or not m.numel():
            raise ValueError(f"expected a square matrix, got shape {tuple(m.shape)}")
        object.__setattr__(self, "matrix", m)
        if not self.order:
            raise ValueError(
                "no power of the matrix up to 64 is the identity to rounding: give it in float64, "
                "or use a continuous group with Linear"
            )

    @property
    def order(self) -> int:
        """The smallest n >= 1 with M^n = 1; 0 when there is none up to 64."""
        one = torch.eye(len(self.matrix), dtype=torch.float64)
        power = one
        for n in range(1, 65):
            power = power @ self.matrix
            if float((power - one).abs().max()) < 1e-9:
                return n
        return 0

    def __call__(self, g: int, x: Tensor) -> Tensor:
        return applied(torch.linalg.matrix_power(self.matrix, g % self.order), x)
