"""Symmetric linear maps on named tensors, and the algebra that makes new ones of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.deadline import check
from eqtoolbox.expect.kinds import Positive
from eqtoolbox.linalg.basis import Basis
from eqtoolbox.linalg.vectors import Space, Vector, add, scale, wide, zeros_like

Projector = Callable[[Vector], dict[str, Tensor]]


class LinearOperator(ABC):
    """A symmetric map v ↦ Hv; calling it counts one product in `matvecs`.

    Attributes:
        space: names, shapes, dtypes and devices of its vectors.
        accuracy: relative error to expect of one product; the Lanczos iteration refuses an
            operator whose asymmetry is larger. √eps unless the operator knows better.
        matvecs: products since construction.
        error_products: what one `product_error` costs, in products; 0 where these are exact.

    Example:
        >>> A = MatrixOperator(torch.diag(torch.tensor([2.0, 1.0])))
        >>> (2 * A + A).dense().diagonal().tolist()
        [6.0, 3.0]
    """

    def __init__(self, space: Space, accuracy: float | None = None) -> None:
        self.space = space
        self.accuracy = math.sqrt(space.eps) if accuracy is None else accuracy
        self.matvecs = 0

    def __call__(self, v: Vector) -> dict[str, Tensor]:
        """Hv, with the names, shapes and dtypes of `v`.

        Raises:
            ValueError: `v` is not in the space.
        """
        v = self.space.admit(v)
        check()
        self.matvecs += 1
        return self._product(v)

    matvec = __call__

    @abstractmethod
    def _product(self, v: Vector) -> dict[str, Tensor]:
        """Hv for a `v` of the space; must not write to `v`."""

    @property
    def error_products(self) -> int:
        return 0

    def product_error(self, v: Vector) -> dict[str, Tensor]:
        """An estimate of the error of Hv beyond rounding; 0 where products are exact."""
        return scale(0.0, v)

    def _block_product(self, v: Vector) -> dict[str, Tensor]:
        """The rows of `v`'s names of H applied to `v` padded by zeros."""
        product = self._product(self._padded(v))
        return {n: product[n] for n in v}

    def _padded(self, v: Vector) -> dict[str, Tensor]:
        """`v` with zeros under the names that it has not."""
        return {n: v[n] if n in v else x.new_zeros(x.shape) for n, x in self.space.like.items()}

    @property
    def size(self) -> int:
        """Dimension n of the space."""
        return self.space.size

    def dense(self) -> Tensor:
        """The matrix (n, n) in float64 on the CPU, by n products: for tests and small n.

        Raises:
            ValueError: this process holds a part of the vectors only.
        """
        unit, columns = zeros_like(self.space.like), []
        if self.size != sum(x.numel() for x in unit.values()):
            raise ValueError("dense needs whole vectors, got shards of them; use top_eigenpairs")
        for x in unit.values():
            entries = x.view(-1)
            for i in range(x.numel()):
                entries[i] = 1
                columns.append(_row(self(unit)))
                entries[i] = 0
        return torch.stack(columns, dim=1)

    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        return Sum(self, other)

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        return Sum(self, -1 * other)

    def __mul__(self, factor: float) -> "LinearOperator":
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __neg__(self) -> "LinearOperator":
        return Scaled(self, -1)

    def restrict(self, *patterns: str) -> "LinearOperator":
        """The diagonal block of the names that match a pattern, such as "layer1.*".

        Raises:
            ValueError: a pattern matches no name.
        """
        return Restricted(self, patterns)

    def project_off(self, directions: Sequence[Vector] | Projector) -> "LinearOperator":
        """(I−Π)H(I−Π), Π the projection on span(directions); exactly 0 along the directions.

        Args:
            directions: vectors, which need not be orthonormal, or the function v ↦ Πv itself.
        """
        return Projected(self, directions, complement=True)

    def project_onto(self, directions: Sequence[Vector] | Projector) -> "LinearOperator":
        """ΠHΠ, Π the projection on span(directions)."""
        return Projected(self, directions, complement=False)


@checked
class MatrixOperator(LinearOperator):
    """A symmetric matrix (n, n) acting on {"x": (n,)}.

    Raises:
        ValueError: not square, not finite or not symmetric.
    """

    def __init__(self, matrix: Tensor | NDArray[np.generic] | Sequence[Sequence[float]]) -> None:
        A = torch.as_tensor(matrix)
        A = A if A.is_floating_point() or A.is_complex() else A.double()
        if A.ndim != 2 or A.shape[0] != A.shape[1]:
            raise ValueError(f"matrix must be square, got shape {tuple(A.shape)}")
        super().__init__(Space.of({"x": A.new_zeros(A.shape[0])}))
        if not A.isfinite().all():
            raise ValueError("matrix must be finite, got NaN or infinity")
        asymmetry, size = float((A - A.T).abs().max()), float(A.abs().max())
        if asymmetry > self.accuracy * size:
            raise ValueError(
                f"matrix must be symmetric, got max|A-Aᵀ| / max|A| = {asymmetry / size}"
            )
        self._matrix = A.to(self.space.like["x"].dtype)

    def _product(self, v: Vector) -> dict[str, Tensor]:
        return {"x": self._matrix @ v["x"]}


@checked
class FunctionOperator(LinearOperator):
    """The map given by `function`, which the caller promises to be linear and symmetric.

    Args:
        function: v ↦ Hv on dicts of tensors.
        example: any vector of the space.
        accuracy: see `LinearOperator`.
    """

    def __init__(
        self,
        function: Annotated[Callable[[Vector], Vector], takes(1, "v -> Hv")],
        example: Vector,
        *,
        accuracy: Positive | None = None,
    ) -> None:
        super().__init__(Space.of(example), accuracy)
        self._function = function

    def _product(self, v: Vector) -> dict[str, Tensor]:
        product = {name: x.detach() for name, x in self._function(v).items()}
        self.space.check(product, "the operator's product")
        return product


@checked
class Sum(LinearOperator):
    """H + G."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        super().__init__(left.space, max(left.accuracy, right.accuracy))
        right.space.check(left.space.like, "the other operator's vector")
        self._left, self._right = left, right

    def _product(self, v: Vector) -> dict[str, Tensor]:
        return add(self._left(v), self._right(v))

    @property
    def error_products(self) -> int:
        return self._left.error_products + self._right.error_products

    def product_error(self, v: Vector) -> dict[str, Tensor]:
        return add(self._left.product_error(v), self._right.product_error(v))


@checked
class Scaled(LinearOperator):
    """factor · H."""

    def __init__(self, inner: LinearOperator, factor: float) -> None:
        super().__init__(inner.space, inner.accuracy)
        self._inner, self._factor = inner, float(factor)

    def _product(self, v: Vector) -> dict[str, Tensor]:
        return scale(self._factor, self._inner(v))

    @property
    def error_products(self) -> int:
        return self._inner.error_products

    def product_error(self, v: Vector) -> dict[str, Tensor]:
        return scale(self._factor, self._inner.product_error(v))


@checked
class Restricted(LinearOperator):
    """A diagonal block of H."""

    def __init__(self, inner: LinearOperator, patterns: Sequence[str]) -> None:
        names, chosen = inner.space.like.keys(), set[str]()
        for pattern in patterns:  # a name may itself look like a pattern
            found = {pattern} & names or {n for n in names if fnmatchcase(n, pattern)}
            if not found:
                some = list(names)[:8]
                raise ValueError(f"{pattern!r} must match a name of the space, got {some}")
            chosen |= found
        super().__init__(inner.space.select([n for n in names if n in chosen]), inner.accuracy)
        self._inner = inner

    def _product(self, v: Vector) -> dict[str, Tensor]:
        self._inner.matvecs += 1
        return self._inner._block_product(v)

    @property
    def error_products(self) -> int:
        return self._inner.error_products

    def product_error(self, v: Vector) -> dict[str, Tensor]:
        whole = self._inner.product_error(self._inner._padded(v))
        return {n: whole[n] for n in v}


@checked
class Projected(LinearOperator):
    """PHP with P = Π or I − Π."""

    def __init__(
        self,
        inner: LinearOperator,
        directions: Sequence[Vector] | Projector,
        *,
        complement: bool,
    ) -> None:
        super().__init__(inner.space, inner.accuracy)
        self._inner, self._complement = inner, complement
        if callable(directions):
            self._projector = directions
        else:
            basis = Basis.spanning(directions)
            inner.space.check(basis.space.like, "direction")
            self._projector = basis.project

    def _project(self, v: Vector) -> dict[str, Tensor]:
        along = self._projector(v)
        return add(v, along, -1.0) if self._complement else along

    def _product(self, v: Vector) -> dict[str, Tensor]:
        return self._project(self._inner(self._project(v)))

    @property
    def error_products(self) -> int:
        return self._inner.error_products

    def product_error(self, v: Vector) -> dict[str, Tensor]:
        return self._project(self._inner.product_error(self._project(v)))


def _row(v: Vector) -> Tensor:
    return torch.cat([wide(x).reshape(-1).cpu() for x in v.values()])
