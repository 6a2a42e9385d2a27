"""Widened: differences of gradients in float64, so small that hardly a kink lies inside of one."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from eqtoolbox.linalg.finite_difference import FiniteDifference
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Space, Vector, add, norm
from eqtoolbox.precision import Precision

RHOS = (1e-6, 1e-8)  # the second where a kink lies inside of the first
STEADY = 0.01  # relative change of a product that is no kink's


class Widened(LinearOperator):
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
        >>> product = Widened(loss, {"x": torch.ones(1)})({"x": torch.ones(1)})["x"]
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
        self._rho = RHOS[0]
        self._inner = FiniteDifference(loss, self._wide, rho=self._rho)
        super().__init__(space, max(space.eps**0.5, self._inner.accuracy))
        self.gradient = self._narrow(self._inner.gradient)

    def steady(self, v: Vector) -> bool:
        """Whether a tenth of the step gives the same product, as it does not at a kink.

        The derivative jumps there, and grows with the inverse of the step: |x| at 0, whose two
        sides are too alike to be told by second differences.
        """
        wide = {n: x.double() for n, x in v.items()}
        finer = FiniteDifference(self._loss, self._wide, rho=self._rho / 10)
        one, two = self._inner(wide), finer(wide)
        return norm(add(one, two, -1.0)) <= STEADY * norm(one)

    def _product(self, v: Vector) -> dict[str, Tensor]:
        wide = {n: x.double() for n, x in v.items()}
        try:
            product = self._inner(wide)
        except ValueError:
            self._rho = RHOS[1]
            self._inner = FiniteDifference(self._loss, self._wide, rho=self._rho)
            product = self._inner(wide)
        return self._narrow(product)

    def _narrow(self, v: Vector) -> dict[str, Tensor]:
        return {n: x.to(self.space.like[n].dtype) for n, x in v.items()}


def smooth_differences(
    loss: Callable[[dict[str, Tensor]], Tensor], params: Vector, along: Vector
) -> FiniteDifference | Widened:
    """Differences that are smooth along a vector, in float64 where the loss follows its parameters.

    Raises:
        ValueError: there are kinks inside of all.
        FloatingPointError: the gradient is not finite.
    """
    try:
        wide = Widened(loss, params)
        wide(along)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        narrow = FiniteDifference(loss, params)
        narrow(along)
        return narrow
    return wide
