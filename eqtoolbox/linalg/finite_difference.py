"""Hessian products from differences of gradients, for losses without a second derivative.

Kinks (ReLU, max-pool) make such differences wrong at every step size, by 200 % and more in random
directions; they show in the second difference of the gradient, and are refused.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor

from eqtoolbox.expect.bounds import instance, takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.deadline import check
from eqtoolbox.linalg.graph import check_scalar, differentiating, filled, leaves
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Space, Vector, add, add_to, norm, scale

Scheme = Annotated[Literal["central", "one_sided"], instance("'central' or 'one_sided'")]
LossOrGradient = Annotated[
    Callable[[dict[str, Tensor]], Tensor | Mapping[str, Tensor]],
    takes(1, "of a dict of parameters"),
]


class Kinked(ValueError):
    """The gradient is not smooth within the step of a difference."""


KINKED = 0.05  # the q above which the gradient is not smooth along the step
STEADY = 0.05  # change of a product by a tenth of the step, above which it is a jump's


@checked
def finite_difference(
    loss_or_gradient: LossOrGradient,
    params: Vector,
    *,
    scheme: Scheme = "central",
    rho: float | None = None,
) -> "FiniteDifference":
    """Hv ≈ (g(θ+hv) − g(θ−hv)) / 2h or (g(θ+hv) − g(θ)) / h, with h = ρ‖g‖/‖Hv‖ for ‖v‖ = 1.

    That step changes the gradient by the fraction ρ of itself in every direction, however flat or
    sharp; ‖Hv‖ is taken from the last product, and a step off by more than 4 is repeated, unless
    it would be as long as one that held a kink. The error of a smooth float32 loss is about 1e-4
    (central) or 1e-3 (one-sided).

    Args:
        loss_or_gradient: parameters -> scalar loss, or -> dict of gradients. The same randomness
            each time. May have a `scope` as in `hessian`.
        params: θ by name; only copies are moved.
        scheme: "central" costs 2 gradients a product; "one_sided" costs 1, and 1 more for the
            first product, the only one that can be tested for kinks.
        rho: relative change of the gradient; by default of order eps^(1/3) for "central" and
            eps^(1/2) for "one_sided", which is 4e-3 and 1e-3 for float32.

    Raises:
        ValueError: a kink, q = ‖g₊−2g₀+g₋‖/‖g₊−g₋‖ > 0.05, in any product of "central" or the
            first of "one_sided"; rho not positive; the loss is no real scalar.
        FloatingPointError: a parameter or gradient is not finite.

    Example:
        >>> H = finite_difference(lambda p: (p["x"] ** 4).sum(), {"x": torch.ones(1).double()})
        >>> round(H({"x": torch.ones(1).double()})["x"].item(), 5)
        12.0
    """
    return FiniteDifference(loss_or_gradient, params, scheme=scheme, rho=rho)


class FiniteDifference(LinearOperator):
    """Differences of gradients at fixed parameters; see `finite_difference`.

    Args:
        stiffness: ‖Hv‖ for the first ‖v‖ = 1, where it is known: its step is tried first.

    Attributes:
        evaluations: gradients computed so far.
        kink: the largest q seen.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Tensor]], Tensor | Mapping[str, Tensor]],
        params: Vector,
        *,
        scheme: Scheme = "central",
        rho: float | None = None,
        stiffness: float | None = None,
    ) -> None:
        if rho is not None and not 0 < rho < 1:
            raise ValueError(f"rho must be between 0 and 1, got {rho}; None chooses it by dtype")
        space = Space.of(params)
        eps: float = max(torch.finfo(p.dtype).eps for p in params.values())
        if scheme == "central":
            rho = 0.8 * eps ** (1 / 3) if rho is None else rho
            error = 50 * (rho**2 + eps / rho)  # truncation, rounding
        else:
            rho = 3 * math.sqrt(eps) if rho is None else rho
            error = 10 * (rho + eps / rho)
        super().__init__(space, accuracy=min(0.3, error))
        self._rho = rho
        self._function, self._scheme, self._eps = function, scheme, eps
        self._point = {name: p.detach() for name, p in leaves(params).items()}
        self._dtypes = {name: p.dtype for name, p in params.items()}
        self._stiffness = stiffness  # ‖Hv‖ of the last unit vector
        self._tested = False  # for kinks
        self._used = 1.0  # step of the last product
        self.evaluations = 0
        self.kink = 0.0
        self.gradient = self._gradient_at(self._point)  # g(θ)

    def _product(self, v: Vector) -> dict[str, Tensor]:
        length = norm(v)
        if length == 0:
            return scale(0.0, v)
        unit = scale(1 / length, v)
        step, bent, smooth = self._step(), math.inf, None
        for _ in range(8):
            product, kink = self._difference(unit, step)
            self._stiffness = norm(product)
            right = self._step()
            if kink > KINKED:
                bent = min(bent, step)
            elif kink <= KINKED and (smooth is None or step > smooth[0]):
                smooth = step, product, kink
            if step / 4 <= right <= 4 * step:
                break
            if smooth is not None and 4 * right >= bent > smooth[0]:
                step, product, kink = smooth
                self._stiffness = norm(product)
                break
            step = right
        self.kink = max(self.kink, kink)
        self._tested, self._used = True, step
        if self.kink > KINKED:
            raise Kinked(
                f"finite differences need a smooth gradient, got a relative second difference of "
                f"{self.kink:.2g} > {KINKED} (ReLU, max-pool or noise such as dropout); use "
                "hessian, after giving what has no second derivative one"
            )
        return scale(length, product)

    def steady(self, v: Vector) -> dict[str, Tensor]:
        """The product, if a tenth of the step gives the same, as it does not where g jumps at θ.

        Both sides of |x| at 0 are too alike for second differences; but the quotient grows.

        Raises:
            Kinked: it has a kink inside of the step, or jumps where the parameters are.
        """
        product, step = self(v), self._used / 10
        length = norm(v)
        finer, _ = self._difference(scale(1 / length, v), step) if length else (product, 0.0)
        change = norm(add(scale(length, finer), product, -1.0))
        rounding = 10 * self._eps * norm(self.gradient) / step * length
        if not change <= STEADY * norm(product) + rounding:
            raise Kinked(
                "finite differences need a smooth gradient, got one that jumps at the parameters: "
                "a tenth of the step changes the product"
            )
        return product

    @property
    def error_products(self) -> int:
        return 2  # differences of two steps

    def product_error(self, v: Vector) -> dict[str, Tensor]:
        """Twice what the product along v changes by at half of the step, where error leaves it.

        The error of a difference falls with the step, to a quarter (central) or to half
        (one-sided), until it is rounding, which grows: either way the change is most of it.
        """
        length = norm(v)
        if not length:
            return scale(0.0, v)
        unit, step = scale(1 / length, v), self._used if self._tested else self._step()
        check()
        coarse, _ = self._difference(unit, step)
        fine, _ = self._difference(unit, step / 2)
        return scale(2 * length, add(fine, coarse, -1.0))

    def _step(self) -> float:
        """h, kept between rounding and a tenth of ‖θ‖; amid both where the gradient is rounding."""
        radius = norm(self._point) or 1.0
        smallest, largest = 10 * self._eps * radius, 0.1 * radius
        if self._stiffness is None:
            return math.sqrt(smallest * largest)
        if not self._stiffness:
            return largest
        wanted = self._rho * norm(self.gradient) / self._stiffness
        return min(wanted if wanted > smallest else math.sqrt(smallest * largest), largest)

    def _difference(self, unit: Vector, step: float) -> tuple[dict[str, Tensor], float]:
        """Hv and q, which is NaN when it was not measured or is rounding."""
        forward = self._gradient_at(add(self._point, unit, step))
        if self._scheme == "one_sided" and self._tested:
            return scale(1 / step, add(forward, self.gradient, -1.0)), math.nan
        backward = self._gradient_at(add(self._point, unit, -step))
        first = add(forward, backward, -1.0)
        del forward
        second = add(backward, self.gradient, -1.0)
        del backward
        bend = norm(add_to(add_to(second, second), first))  # g₊ - 2 g₀ + g₋
        rounding, length = 100 * self._eps * norm(self.gradient), norm(first)
        kink = bend / length if length > rounding else math.nan
        return {n: x.mul_(0.5 / step) for n, x in first.items()}, kink

    def _gradient_at(self, point: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.evaluations += 1
        at = {name: x.detach().requires_grad_() for name, x in point.items()}
        with differentiating(self._function, at):
            value = self._function({n: x.to(self._dtypes[n]) for n, x in at.items()})
            if isinstance(value, Tensor):
                check_scalar(value)
                gradient = filled(
                    at, torch.autograd.grad(value, list(at.values()), allow_unused=True)
                )
            else:
                gradient = {n: value[n].detach().to(x.dtype) for n, x in at.items()}
        if not math.isfinite(norm(gradient)):
            raise FloatingPointError("the gradient must be finite, got NaN or infinity")
        return gradient
