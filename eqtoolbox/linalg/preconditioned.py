"""Curvature in the metric of a diagonal preconditioner, such as Adam's."""

from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Positive
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Vector


class Preconditioned(LinearOperator):
    """P^(-1/2) H P^(-1/2)."""

    def __init__(self, inner: LinearOperator, diagonal: Vector, accuracy: float | None) -> None:
        super().__init__(inner.space, inner.accuracy if accuracy is None else accuracy)
        diagonal = inner.space.admit(diagonal, "diagonal")
        for name, p in diagonal.items():
            if not bool(((p > 0) & p.isfinite()).all()):
                raise ValueError(
                    f"diagonal[{name!r}] must be positive and finite, got a smallest entry of "
                    f"{p.min().item()}; add the optimizer's eps"
                )
        self._inner = inner
        self._root = {name: diagonal[name].rsqrt() for name in inner.space.like}

    def _product(self, v: Vector) -> dict[str, Tensor]:
        inner = self._inner({name: r * v[name] for name, r in self._root.items()})
        return {name: r * inner[name] for name, r in self._root.items()}

    @property
    def error_products(self) -> int:
        return self._inner.error_products

    def product_error(self, v: Vector) -> dict[str, Tensor]:
        inner = self._inner.product_error({name: r * v[name] for name, r in self._root.items()})
        return {name: r * inner[name] for name, r in self._root.items()}


@checked
def preconditioned(
    operator: LinearOperator, diagonal: Vector, *, accuracy: Positive | None = None
) -> LinearOperator:
    """P^(-1/2) H P^(-1/2) for a diagonal P > 0, the curvature an adaptive optimizer feels.

    Args:
        operator: H.
        diagonal: P, in the operator's space; for Adam √v̂ + eps.
        accuracy: relative error of a product, above which Lanczos calls it not symmetric; default
            the operator's. A P that spans many orders amplifies the rounding of H's small entries.

    Raises:
        ValueError: an entry of P is not positive and finite.

    Reference:
        Cohen et al. 2022, Adaptive gradient methods at the edge of stability, arXiv 2207.14484.

    Example:
        >>> import torch
        >>> from eqtoolbox.linalg import MatrixOperator
        >>> H = MatrixOperator(torch.diag(torch.tensor([8.0, 1.0])))
        >>> preconditioned(H, {"x": torch.tensor([4.0, 1.0])}).dense().diagonal().tolist()
        [2.0, 1.0]
    """
    return Preconditioned(operator, diagonal, accuracy)
