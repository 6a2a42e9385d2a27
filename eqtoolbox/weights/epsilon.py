"""Epsilon: what the small constants of normalisations leave of a scale symmetry, exactly.

(x - mean) / sqrt(var + eps) absorbs the scale of x but for eps, and wholly if eps scales as var
does. Let T_s multiply what the k-th constant is added to by e^(r_k s). Then

    order 0   L(T_s theta, eps) = L(theta, e^(-r s) eps)
    order 1   g . K = p,  p(theta) = - sum_k r_k eps_k dL/deps_k
    order 2   H K + (DK)^T g = grad p

The rates r come from one evaluation at T_s theta in which every constant moves along with what it
is added to; what is left then is broken by something else.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from eqtoolbox.replay.checkpoints import just_run
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.weights.normalisations import FORMULAS

SMALL = 1e-3  # a constant up to this, added to a tensor, counts as an epsilon; as in the search
LARGEST = 0.1  # up to this where a root or a division follows; as in the search


Loss = Callable[[dict[str, Tensor]], Tensor]
Factor = Callable[[int, Tensor, float], Tensor]


class Epsilons(TorchFunctionMode):
    """Scope in which every epsilon is multiplied by a factor of the shape of what it is added to.

    Normalisations of torch are computed from formulas with a tensor for their epsilon; of others
    (`variance + 1e-6`) the sum itself is seen, or the root or division after it where the constant
    alone does not tell. Kernels of other libraries are not. Checkpoints are
    off inside: what they run again in the backward would not be in this scope.

    Args:
        factor: (number in the order of calls, what it is added to, epsilon) -> factor.
        live: give and keep what the epsilons are added to in the graph, not detached.

    Example:
        >>> x = torch.randn(8, 4, dtype=torch.float64)
        >>> with Epsilons(lambda _, amount, eps: torch.ones_like(amount)) as seen:
        ...     y = torch.layer_norm(x, (4,))
        >>> seen.amounts[0].shape, torch.allclose(y, torch.layer_norm(x, (4,)))
        (torch.Size([8, 1]), True)
    """

    def __init__(self, factor: Factor, live: bool = False) -> None:
        super().__init__()
        self.factor = factor
        self.live = live
        self.amounts: list[Tensor] = []
        self._sums = WeakIdKeyDictionary()  # (constant, version) of sums with what may be one

    def __enter__(self) -> Self:
        self._uncheckpointed = ExitStack()
        self._uncheckpointed.enter_context(just_run())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._uncheckpointed.close()

    def plus(self, amount: Tensor, eps: float) -> Tensor:
        """What to add to `amount` in place of eps."""
        seen = amount if self.live else amount.detach()
        factor = self.factor(len(self.amounts), seen, eps)
        self.amounts.append(seen if self.live else seen.clone())
        return eps * factor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SUMS and len(args) == 2 and not kwargs:
            amount, eps = args
            if isinstance(eps, float) and 0 < abs(eps) <= LARGEST and amount.is_floating_point():
                return self._summed(func, amount, eps)
        position = _ROOTS.get(func)
        if position is not None and not kwargs and len(args) > position:
            eps = self._constant(func, args, position)
            if eps is not None:
                args = self._rooted(func, args, position, eps)
        formula = FORMULAS.get(func)
        made = None if formula is None else self._normalised(formula, args, kwargs)
        return func(*args, **kwargs) if made is None else made

    def _normalised(self, formula: Callable[..., Any], args: Any, kwargs: Any) -> Tensor | None:
        made: Tensor | None = formula(self.plus, *args, **kwargs)
        return made

    def _summed(self, func: Callable[..., Tensor], amount: Tensor, eps: float) -> Tensor:
        if abs(eps) <= SMALL:
            return func(amount, self.plus(amount, eps))
        made = func(amount, eps)
        self._sums[made] = eps, made._version
        return made

    def _constant(self, func: Any, args: tuple[Any, ...], position: int) -> float | None:
        """The epsilon in what a root is taken of or something is divided by, if there is one."""
        found = args[position]
        if not isinstance(found, Tensor) or found not in self._sums:
            return None
        eps, version = self._sums[found]
        if found._version != version or (func in _POWERS and _whole(args[1])):
            return None
        return float(eps)

    def _rooted(
        self, func: Any, args: tuple[Any, ...], position: int, eps: float
    ) -> tuple[Any, ...]:
        """The arguments with its factor."""
        found = args[position]
        more = self.plus(found - eps, eps) - eps
        made = found.add_(more) if func in _IN_PLACE else found + more
        return (*args[:position], made, *args[position + 1 :])


class Noted(Epsilons):
    """Scope that notes what every epsilon is added to, beside kernels that run as they are.

    Nobody else sees it do so, nor does it turn checkpoints off.

    Example:
        >>> x = torch.randn(8, 4, dtype=torch.float64)
        >>> with Noted() as seen:
        ...     y = torch.layer_norm(x, (4,))
        >>> seen.known, torch.allclose(seen.amounts[0][:, 0], x.var(1, unbiased=False))
        (True, True)
    """

    def __init__(self) -> None:
        super().__init__(lambda _, amount, __: torch.ones_like(amount))
        self.known = True  # whether all could be noted, to the rounding of float64

    def __enter__(self) -> Self:
        TorchFunctionMode.__enter__(self)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        TorchFunctionMode.__exit__(self, kind, error, trace)  # type: ignore[no-untyped-call]

    def plus(self, amount: Tensor, eps: float) -> Tensor:
        self.known &= amount.dtype == torch.float64
        with unobserved(), torch.no_grad():
            return super().plus(amount, eps)

    def _normalised(self, formula: Callable[..., Any], args: Any, kwargs: Any) -> None:
        try:
            with unobserved(), torch.no_grad():
                formula(self.plus, *args, **kwargs)
        except Exception:  # formulas may not run where kernels do
            self.known = False

    def _summed(self, func: Callable[..., Tensor], amount: Tensor, eps: float) -> Tensor:
        if abs(eps) > SMALL:
            return super()._summed(func, amount, eps)
        self.plus(amount, eps)
        return func(amount, eps)

    def _rooted(
        self, func: Any, args: tuple[Any, ...], position: int, eps: float
    ) -> tuple[Any, ...]:
        with unobserved(), torch.no_grad():
            self.plus(args[position] - eps, eps)
        return args


def observed(loss: Loss, params: dict[str, Tensor]) -> list[Tensor]:
    """What each epsilon is added to, in the order of calls."""
    seen = Epsilons(lambda _, amount, __: torch.ones_like(amount))
    with torch.no_grad(), seen:
        loss(params)
    return seen.amounts


def moved_along(
    loss: Loss, params: dict[str, Tensor], base: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The loss with every epsilon scaled as what it is added to has been since `base`.

    Returns:
        The loss, equal to that at the base point if only epsilon breaks the symmetry, and the
        factors e^(r s).

    Raises:
        LookupError: the computation calls other operations than at the base point.
    """
    factors: list[Tensor] = []

    def ratio(number: int, amount: Tensor, eps: float) -> Tensor:
        if number >= len(base) or base[number].shape != amount.shape:
            raise LookupError("the computation takes another course where parameters are moved")
        before, least = base[number].to(amount), torch.finfo(amount.dtype).eps * abs(eps)
        found = amount / before
        usable = (found > 0) & (before.abs() > least) & (amount.abs() > least)
        factors.append(torch.where(usable, found, torch.ones_like(found)))
        return factors[-1]

    with torch.no_grad(), Epsilons(ratio):
        value = loss(params)
    if len(factors) != len(base):
        raise LookupError("the computation takes another course where parameters are moved")
    return value, factors


def at_factors(loss: Loss, params: dict[str, Tensor], factors: Sequence[Tensor]) -> Tensor:
    """The loss with every epsilon times its factor; differentiable in parameters and factors."""
    with Epsilons(lambda number, amount, _: factors[number].to(amount)):
        return loss(params)


def prediction(slopes: Sequence[Tensor], rates: Sequence[Tensor]) -> Tensor:
    """p = - sum_k r_k dL/dlog(eps_k).

    Args:
        slopes: dL/dlog(eps) of every epsilon, of the shapes of `observed`.
        rates: r of a generator K, log e^(r s) / s of `moved_along`.
    """
    parts = [-(r.to(s) * s).sum() for s, r in zip(slopes, rates, strict=True)]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def log_slopes(loss: Loss, params: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What each epsilon is added to, as `observed`, and dL/dlog(eps) of the same shapes."""
    ones: list[Tensor] = []

    def one(_: int, amount: Tensor, __: float) -> Tensor:
        ones.append(torch.ones_like(amount).requires_grad_())
        return ones[-1]

    with torch.enable_grad():
        with Epsilons(one) as seen:
            value = loss({n: p.detach() for n, p in params.items()})
        if not ones or not value.requires_grad:
            return seen.amounts, [torch.zeros_like(o) for o in ones]
        slopes = torch.autograd.grad(value, ones, allow_unused=True, materialize_grads=True)
    return seen.amounts, list(slopes)


def _whole(power: Any) -> bool:
    """Whether a power is no root."""
    return not isinstance(power, (int, float)) or (power > 0 and power % 1 == 0)


_SUMS: set[Any] = {Tensor.add, Tensor.add_, torch.add, Tensor.__add__, Tensor.__radd__}
_POWERS: set[Any] = {torch.pow, Tensor.pow, Tensor.__pow__}
_IN_PLACE: set[Any] = {Tensor.sqrt_, Tensor.rsqrt_, Tensor.reciprocal_}
_ROOTS: dict[Any, int] = {  # with the position of what they are taken of, or divide by
    **dict.fromkeys((torch.sqrt, torch.rsqrt, torch.reciprocal, *_POWERS, *_IN_PLACE), 0),
    **dict.fromkeys((Tensor.sqrt, Tensor.rsqrt, Tensor.reciprocal, Tensor.__rtruediv__), 0),
    **dict.fromkeys((torch.div, torch.true_divide, Tensor.div, Tensor.true_divide), 1),
    **dict.fromkeys((Tensor.__truediv__, Tensor.div_, Tensor.__itruediv__), 1),
}
