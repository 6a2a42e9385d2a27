"""Widened: differences of gradients in float64, so small that hardly a kink lies inside of one."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from eqtoolbox.linalg.finite_difference import FiniteDifference
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.precision import Precision
from eqtoolbox.linalg.vectors import Space, Vector

RHOS = (1e-6, 1e-8)  # the second where a kink lies inside of the first


class WidenedOperator(LinearOperator):
    """`FiniteDifference` of a loss in float64, for vectors of the parameters' own precision.

    The step is a thousandth of that of float32 and less: the products of a ReLU network, whose
    kinks lie inside of every difference in float32, are those of its smooth pieces.

    Args:
        loss: of parameters in float64, computed in float64.
        params: in their own precision.
        stiffness: as of `FiniteDifference`.

    Attributes:
        value: of the loss there; NaN where gradients were given.

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
        stiffness: float | None = None,
    ) -> None:
        space = Space.of(params)
        self._loss, self._wide = loss, {n: p.detach().double() for n, p in params.items()}
        with torch.no_grad(), Precision() as precision:
            value = loss(self._wide)
        if precision.eps > torch.finfo(torch.float64).eps:  # steps so small would be its rounding
            raise ValueError(f"the loss must compute in float64, got steps of {precision.eps:.1e}")
        self._inner = FiniteDifference(loss, self._wide, rho=RHOS[0], stiffness=stiffness)
        super().__init__(space, max(space.eps**0.5, self._inner.accuracy))
        self.gradient = self._narrow(self._inner.gradient)
        self.value = float(value) if isinstance(value, Tensor) else math.nan

    def steady(self, v: Vector) -> dict[str, Tensor]:
        """See `FiniteDifference.steady`."""
        return self._narrow(self._smaller(lambda: self._inner.steady(self._widened(v))))

    @property
    def error_products(self) -> int:
        return self._inner.error_products

    def product_error(self, v: Vector) -> dict[str, Tensor]:
        return self._narrow(self._inner.product_error(self._widened(v)))

    def _product(self, v: Vector) -> dict[str, Tensor]:
        return self._narrow(self._smaller(lambda: self._inner(self._widened(v))))

    def _smaller(self, product: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A product of the inner operator, by smaller steps where these meet a kink."""
        try:
            return product()
        except ValueError:
            self._inner = FiniteDifference(self._loss, self._wide, rho=RHOS[1])
            return product()

    def _widened(self, v: Vector) -> dict[str, Tensor]:
        return {n: x.double() for n, x in v.items()}

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
        made: FiniteDifference | WidenedOperator = WidenedOperator(loss, params)
        made.steady(along)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        made = FiniteDifference(loss, params)
        made.steady(along)
    return made
