"""The tangent space of an orbit: projection off everything that symmetries generate at one point.

The tangents K_c are linear in c, so that the projection is a least-squares problem, solved by
conjugate gradients on the columns of K scaled to norm one. No basis is stored: GL groups have more
generators than a basis could be kept of.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters


class TangentSpace:
    """Span of the generators of several symmetries at one point.

    Reference:
        Bjorck 1996, Numerical Methods for Least Squares Problems, section 7.4 (CGLS).
    """

    def __init__(
        self,
        symmetries: Sequence[ContinuousSymmetry],
        params: Parameters,
        *,
        tol: float = 1e-13,
        max_iterations: int = 1000,
    ) -> None:
        self._symmetries = list(symmetries)
        self._params = {n: p.detach().double() for n, p in params.items()}
        self._tol, self._max = tol, max_iterations
        self._scales = [_scale(s, self._params) for s in self._symmetries]
        self.iterations = 0  # spent so far
        self.defect = 0.0  # largest |K^T r| / |v| left, columns of K of norm one

    @property
    def dimension(self) -> int:
        """Number of generators; an upper bound of the dimension."""
        return sum(s.dimension for s in self._symmetries)

    def project(self, v: Parameters) -> dict[str, Tensor]:
        """The part of `v` along the orbit."""
        off = self.complement(v)
        return {n: x - off[n] for n, x in v.items()}

    def complement(self, v: Parameters) -> dict[str, Tensor]:
        """The part of `v` orthogonal to the orbit, in the type of `v`."""
        rest = {n: x.double().clone() for n, x in v.items()}
        size = math.sqrt(sum(float(x.square().sum()) for x in rest.values()))
        if size == 0 or not self._symmetries:
            return dict(v)
        slope = self._adjoint(rest)
        direction, square = slope, _square(slope)
        best = math.inf
        for _ in range(self._max):
            best = min(best, math.sqrt(square))
            if math.sqrt(square) <= self._tol * size:
                break
            along = self._forward(direction)
            length = sum(float(x.square().sum()) for x in along.values())
            if length == 0:
                break
            for name, x in along.items():
                rest[name].sub_(x, alpha=square / length)
            slope = self._adjoint(rest)
            last, square = square, _square(slope)
            direction = [s + (square / last) * d for s, d in zip(slope, direction, strict=True)]
            self.iterations += 1
        self.defect = max(self.defect, best / size)
        return {n: rest[n].to(x) for n, x in v.items()}

    @torch.no_grad()
    def _forward(self, coefficients: list[Tensor]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for s, c, scale in zip(self._symmetries, coefficients, self._scales, strict=True):
            for name, x in s.tangent(self._params, scale * c).items():
                total[name] = total[name] + x if name in total else x
        return total

    def _adjoint(self, v: Parameters) -> list[Tensor]:
        pairs = zip(self._symmetries, self._scales, strict=True)
        return [scale * s.slopes(self._params, v) for s, scale in pairs]


def _square(parts: list[Tensor]) -> float:
    return sum(float(p.square().sum()) for p in parts)


def _scale(symmetry: ContinuousSymmetry, params: Parameters) -> Tensor:
    """1 / |K_i| of every generator, zero where it vanishes, (dimension,) float64."""
    squares = symmetry.lengths(params).square()
    typical = float(squares.max()) if len(squares) else 0.0
    return torch.where(squares > 1e-30 * typical, squares.rsqrt(), 0.0)
