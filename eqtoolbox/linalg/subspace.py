"""How vectors and subspaces lie to each other: energy shares and principal angles."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.basis import Basis
from eqtoolbox.linalg.vectors import Vector, dot


@checked
def energy_share(vector: Vector, directions: Sequence[Vector]) -> float:
    """‖VᵀG‖²/‖g‖², the share of the energy of `vector` in span(directions); 0 to 1.

    A random vector has k/n. The directions need not be orthonormal.

    Returns:
        The share, or NaN for the zero vector, which lies nowhere.

    Raises:
        ValueError: no directions, all of them zero, or vectors of different spaces.

    Reference:
        Gur-Ari et al. 2018, Gradient descent happens in a tiny subspace, arXiv 1812.04754.

    Example:
        >>> g = {"x": torch.tensor([3.0, 4.0])}
        >>> round(energy_share(g, [{"x": torch.tensor([1.0, 0.0])}]), 6)
        0.36
    """
    return share_in(Basis.spanning(directions), vector)


def share_in(basis: Basis, vector: Vector) -> float:
    """The same of a span whose basis is known.

    Example:
        >>> basis = Basis.spanning([{"x": torch.tensor([1.0, 0.0])}])
        >>> round(share_in(basis, {"x": torch.tensor([3.0, 4.0])}), 6)
        0.36
    """
    vector = basis.space.admit(vector)
    total = dot(vector, vector)
    if total == 0:
        return math.nan
    return min(float(basis.coefficients(basis.pack(vector)).square().sum()) / total, 1.0)


@checked
def principal_angles(first: Sequence[Vector], second: Sequence[Vector]) -> Tensor:
    """Angles between span(first) and span(second), ascending; 0 for shared directions.

    Small angles come from their sines, large ones from their cosines, so all are accurate to the
    precision of the vectors.

    Returns:
        (min(p, q),) float64, radians, 0 to π/2.

    Raises:
        ValueError: an empty or zero set of vectors, or different spaces.

    Reference:
        Björck & Golub 1973, Numerical methods for computing angles between linear subspaces.

    Example:
        >>> x, y = {"x": torch.tensor([1.0, 0.0])}, {"x": torch.tensor([1.0, 1.0])}
        >>> round(math.degrees(principal_angles([x], [y]).item()), 4)
        45.0
    """
    large, small = Basis.spanning(first), Basis.spanning(second)
    large.space.check(small.space.like)
    if len(large) < len(small):
        large, small = small, large
    flats = [small.pack(small.vector(i)) for i in range(len(small))]
    cosines = torch.linalg.svdvals(torch.stack([large.coefficients(w) for w in flats]))
    for w in flats:
        large.orthogonalise(w)
    outside = [large.unpack(w) for w in flats]
    gram = torch.tensor([[dot(a, b) for b in outside] for a in outside], dtype=torch.float64)
    sines = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    near = cosines > math.sqrt(0.5)
    return torch.where(near, sines.clamp(max=1).asin(), cosines.clamp(max=1).acos())
