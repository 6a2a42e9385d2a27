"""Matrix groups: rotations, reflections, Euclidean motions and Lorentz transformations in float64.

An element is its matrix as a tuple of rows, so that it is a plain hashable value.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count, Positive
from eqtoolbox.symmetry.groups.group import Group

Rows = tuple[tuple[float, ...], ...]


def matrix(g: Rows) -> Tensor:
    """The float64 matrix of an element, (n, n)."""
    return torch.tensor(g, dtype=torch.float64)


def rows(m: Tensor) -> Rows:
    """The element that a matrix is, as a plain value.

    Example:
        >>> rows(torch.eye(2))
        ((1.0, 0.0), (0.0, 1.0))
    """
    return tuple(map(tuple, m.to(torch.float64).tolist()))


class MatrixGroup(Group):
    """A group of invertible real matrices, combined by the matrix product, with rounding."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Rows of the matrices."""

    @property
    def order(self) -> None:
        return None

    @property
    def exact(self) -> bool:
        return False

    @property
    def identity(self) -> Rows:
        return rows(torch.eye(self.size, dtype=torch.float64))

    def compose(self, g: Rows, h: Rows) -> Rows:
        return rows(matrix(g) @ matrix(h))

    def inverse(self, g: Rows) -> Rows:
        return rows(torch.linalg.inv(matrix(g)))

    def element(self, generator: Tensor, parameter: float) -> Rows:
        """exp(parameter · generator), the element that a generator leads to."""
        return rows(torch.linalg.matrix_exp(parameter * generator.to(torch.float64)))


@checked
@dataclass(frozen=True)
class Orthogonal(MatrixGroup):
    """O(n), or SO(n) when `proper`: rotations of n-dimensional space, with reflections or without.

    Samples are Haar: the QR factor of a Gaussian matrix with the signs of R's diagonal moved into
    Q. Without that correction the trace has mean -0.5 and not 0, and uniform Euler angles are no
    better.

    Reference: Mezzadri 2007, arXiv math-ph/0609050.

    Example:
        >>> group = Orthogonal(3, proper=True)
        >>> (g,) = group.sample(1, torch.Generator().manual_seed(0))
        >>> round(float(torch.linalg.det(matrix(g))), 12)
        1.0
    """

    n: Count
    proper: bool = False

    def __post_init__(self) -> None:
        if self.n == 1 and self.proper:
            raise ValueError("SO(1) has only the identity; use Sign() or n >= 2")

    @property
    def name(self) -> str:
        return f"{'s' if self.proper else ''}o{self.n}"

    @property
    def size(self) -> int:
        return self.n

    def inverse(self, g: Rows) -> Rows:
        return rows(matrix(g).T)

    def sample(self, count: int, generator: torch.Generator) -> list[Rows]:
        normal = _normal((counted(count), self.n, self.n), generator)
        q, r = torch.linalg.qr(normal)
        q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        if self.proper:
            q[:, :, 0] *= torch.linalg.det(q).sign().unsqueeze(-1)
        return [rows(m) for m in q]

    def generators(self) -> list[Tensor]:
        return _rotations(self.n, self.n)


@checked
@dataclass(frozen=True)
class Euclidean(MatrixGroup):
    """E(n), or SE(n) when `proper`: x -> R x + t as matrices of size n + 1.

    Rotations are Haar; translations have no finite Haar measure and are drawn from a normal
    distribution of standard deviation `spread`, in the units of the positions.

    Raises:
        ValueError: n is no integer >= 1, or the spread is not positive.

    Example:
        >>> Euclidean(3, proper=True).name
        'se3'
    """

    n: Count
    proper: bool = False
    spread: Positive = 1.0

    @property
    def name(self) -> str:
        return f"{'s' if self.proper else ''}e{self.n}"

    @property
    def size(self) -> int:
        return self.n + 1

    @property
    def uniform(self) -> bool:
        return False

    def inverse(self, g: Rows) -> Rows:
        m = matrix(g)
        back = torch.eye(self.size, dtype=torch.float64)
        back[:-1, :-1] = m[:-1, :-1].T
        back[:-1, -1] = -(m[:-1, :-1].T @ m[:-1, -1])
        return rows(back)

    def sample(self, count: int, generator: torch.Generator) -> list[Rows]:
        turns = Orthogonal(self.n, self.proper and self.n > 1).sample(count, generator)
        moves = self.spread * _normal((count, self.n), generator)
        drawn = []
        for turn, move in zip(turns, moves, strict=True):
            m = torch.eye(self.size, dtype=torch.float64)
            m[:-1, :-1], m[:-1, -1] = matrix(turn), move
            if self.proper and self.n == 1:
                m[0, 0] = 1.0
            drawn.append(rows(m))
        return drawn

    def generators(self) -> list[Tensor]:
        moves = []
        for i in range(self.n):
            move = torch.zeros(self.size, self.size, dtype=torch.float64)
            move[i, -1] = 1.0
            moves.append(move)
        return _rotations(self.n, self.size) + moves


@checked
@dataclass(frozen=True)
class Lorentz(MatrixGroup):
    """SO+(1, n): boosts and rotations of (t, x_1 .. x_n), those that keep t^2 - x^2.

    The group is not compact, so there is no uniform distribution: samples are rotation · boost ·
    rotation with a rapidity uniform in [0, `rapidity`]. Errors in floating point grow as its
    exponential.

    Example:
        >>> eta = torch.diag(torch.tensor([1.0, -1, -1, -1], dtype=torch.float64))
        >>> (g,) = Lorentz().sample(1, torch.Generator().manual_seed(0))
        >>> bool(((matrix(g).T @ eta @ matrix(g) - eta).abs() < 1e-13).all())
        True
    """

    rapidity: Positive = 1.0
    space: Count = 3

    @property
    def name(self) -> str:
        return "lorentz"

    @property
    def size(self) -> int:
        return self.space + 1

    @property
    def uniform(self) -> bool:
        return False

    def inverse(self, g: Rows) -> Rows:
        metric = torch.ones(self.size, dtype=torch.float64)
        metric[1:] = -1.0
        return rows(metric[:, None] * matrix(g).T * metric)

    def sample(self, count: int, generator: torch.Generator) -> list[Rows]:
        sphere = Orthogonal(self.space, proper=self.space > 1)
        sides = sphere.sample(2 * counted(count), generator)
        device = generator.device
        angles = self.rapidity * torch.rand(
            count, generator=generator, dtype=torch.float64, device=device
        )
        boosts = self.generators()[-self.space]
        drawn = []
        for i, angle in enumerate(angles.tolist()):
            boost = torch.linalg.matrix_exp(angle * boosts)
            left, right = (self._turn(sides[2 * i + side]) for side in (0, 1))
            drawn.append(rows(left @ boost @ right))
        return drawn

    def generators(self) -> list[Tensor]:
        turns = []
        for turn in _rotations(self.space, self.space):
            wide = torch.zeros(self.size, self.size, dtype=torch.float64)
            wide[1:, 1:] = turn
            turns.append(wide)
        boosts = []
        for i in range(1, self.size):
            boost = torch.zeros(self.size, self.size, dtype=torch.float64)
            boost[0, i] = boost[i, 0] = 1.0
            boosts.append(boost)
        return turns + boosts

    def _turn(self, g: Rows) -> Tensor:
        m = torch.eye(self.size, dtype=torch.float64)
        if self.space > 1:
            m[1:, 1:] = matrix(g)
        return m


def SO2() -> Orthogonal:
    """Rotations of the plane."""
    return Orthogonal(2, proper=True)


def O2() -> Orthogonal:
    """Rotations and reflections of the plane."""
    return Orthogonal(2)


def SO3() -> Orthogonal:
    """Rotations of space."""
    return Orthogonal(3, proper=True)


def O3() -> Orthogonal:
    """Rotations, reflections and the inversion of space."""
    return Orthogonal(3)


@checked
def SE3(spread: Positive = 1.0) -> Euclidean:
    """Rigid motions of space; translations normal with standard deviation `spread`."""
    return Euclidean(3, proper=True, spread=spread)


@checked
def E3(spread: Positive = 1.0) -> Euclidean:
    """Rigid motions and mirror images of space; translations as in `SE3`."""
    return Euclidean(3, spread=spread)


def _rotations(n: int, size: int) -> list[Tensor]:
    """A basis of so(n) inside matrices of a larger size, one plane each, in radians."""
    basis = []
    for i in range(n):
        for j in range(i + 1, n):
            plane = torch.zeros(size, size, dtype=torch.float64)
            plane[j, i], plane[i, j] = 1.0, -1.0
            basis.append(plane)
    return basis


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return drawn.cpu()


def counted(count: int) -> int:
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}")
    return count
