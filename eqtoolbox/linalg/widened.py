"""Widened: differences of gradients in float64, so small that hardly a kink lies inside of one."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from eqtoolbox.linalg.finite_difference import FiniteDifference, Kinked
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.precision import Precision
from eqtoolbox.linalg.vectors import Space, Vector

Differences = TypeVar("Differences", "FiniteDifference", "WidenedOperator")
RHOS = (1e-6, 1e-8)  # the second where a kink lies inside of the first


class WidenedOperator(LinearOperator):
    """`FiniteDifference` of a loss in float64, for vectors of the parameters' own precision.

    The step is a thousandth of that of float32 and less: the products of a ReLU network, whose
    kinks lie inside of every difference in float32, are those of its smooth pieces.

    Args:
        loss: of parameters in float64, computed in float64.
        params: in their own precision.

    Raises:
        ValueError: the loss computes in a coarser precision, or its gradient is not smooth even so.

    Example:
        >>> loss = lambda p: torch.relu(p["x"]).pow(3).sum()
        >>> product = WidenedOperator(loss, {"x": torch.ones(1)})({"x": torch.ones(1)})["x"]
        >>> product.dtype, round(product.item(), 4)
        (torch.float32, 6.0)
    """

    def __init__(
        self,
        loss: Callable[[dict[str, Tensor]], Tensor | Mapping[str, Tensor]],
        params: Vector,
    ) -> None:
        space = Space.of(params)
        self._loss, self._wide = loss, {n: p.detach().double() for n, p in params.items()}
        with torch.no_grad(), Precision() as precision:
            loss(self._wide)
        if precision.eps > torch.finfo(torch.float64).eps:  # steps so small would be its rounding
            raise ValueError(f"the loss must compute in float64, got steps of {precision.eps:.1e}")
        self._inner = FiniteDifference(loss, self._wide, rho=RHOS[0])
        super().__init__(space, max(space.eps**0.5, self._inner.accuracy))
        self.gradient = self._narrow(self._inner.gradient)

    def steady(self, v: Vector) -> bool:
        """See `FiniteDifference.steady`."""
        return self._inner.steady({n: x.double() for n, x in v.items()})

    @property
    def error_products(self) -> int:
        return self._inner.error_products

    def product_error(self, v: Vector) -> dict[str, Tensor]:
        return self._narrow(self._inner.product_error({n: x.double() for n, x in v.items()}))

    def _product(self, v: Vector) -> dict[str, Tensor]:
        wide = {n: x.double() for n, x in v.items()}
        try:
            product = self._inner(wide)
        except ValueError:
            self._inner = FiniteDifference(self._loss, self._wide, rho=RHOS[1])
            product = self._inner(wide)
        return self._narrow(product)

    def _narrow(self, v: Vector) -> dict[str, Tensor]:
        return {n: x.to(self.space.like[n].dtype) for n, x in v.items()}


def smooth_differences(
    loss: Callable[[dict[str, Tensor]], Tensor], params: Vector, along: Vector
) -> FiniteDifference | WidenedOperator:
    """Differences that are smooth along a vector, in float64 where the loss follows its parameters.

    Raises:
        ValueError: there are kinks inside of all.
        FloatingPointError: the gradient is not finite.
    """
    try:
        return steady(WidenedOperator(loss, params), along)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return steady(FiniteDifference(loss, params), along)


def steady(
    differences: FiniteDifference | WidenedOperator, along: Vector
) -> FiniteDifference | WidenedOperator:
    """The differences, if the gradient is smooth along a vector.

    Raises:
        ValueError: it has a kink inside of the step, or jumps where the parameters are.
    """
    if not differences.steady(along):
        raise Kinked(
            "finite differences need a smooth gradient, got one that jumps at the parameters: a "
            "tenth of the step changes the product"
        )
    return differences
