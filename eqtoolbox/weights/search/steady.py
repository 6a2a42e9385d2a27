"""Steady: a loss whose epsilons scale as what they are added to does, so that scales keep it.

M(theta) = L(theta, eps_k a_k(theta) / a_k(theta_0)) with a_k what the k-th epsilon is added to.
Whatever only epsilon breaks in L is a symmetry of M; at theta_0 both are equal, and
grad L - grad M = q, the part of the gradient that is owed to the epsilons.
"""

import torch
from torch import Tensor

from eqtoolbox.weights.epsilon import Epsilons
from eqtoolbox.weights.search.point import Point
from eqtoolbox.weights.search.verification import Loss, evaluated


class Steady:
    """M as a function of parameters; theta_0 is where it is called first, or `base` was seen.

    Raises:
        LookupError: when called, where the computation takes another course than at theta_0.

    Example:
        >>> x = torch.randn(4, dtype=torch.float64)
        >>> loss = Steady(lambda p: torch.nn.functional.rms_norm(p["w"] * x, (4,), eps=0.1)[0])
        >>> at = [float(loss({"w": torch.tensor(w, dtype=torch.float64)})) for w in (1.0, 2.0)]
        >>> abs(at[0] - at[1]) < 1e-14
        True
    """

    def __init__(self, loss: Loss, base: list[Tensor] | None = None) -> None:
        self.loss = loss
        self.base = base  # a_k(theta_0) in the order of calls

    def __call__(self, params: dict[str, Tensor]) -> Tensor:
        seen: list[Tensor] = []

        def ratio(number: int, amount: Tensor, eps: float) -> Tensor:
            seen.append(amount.detach().clone() if self.base is None else amount.detach())
            before = seen[-1] if self.base is None else self._before(number, amount)
            least = torch.finfo(amount.dtype).eps * abs(eps)
            usable = (seen[-1] / before > 0) & (before.abs() > least) & (seen[-1].abs() > least)
            return torch.where(usable, amount, 1.0) / torch.where(usable, before, 1.0)

        with Epsilons(ratio, live=True):
            value = self.loss(params)
        if self.base is None:
            self.base = seen
        elif len(seen) != len(self.base):
            raise LookupError("the computation takes another course where parameters are moved")
        return value

    @classmethod
    def at(cls, loss: Loss, point: Point) -> list[Tensor]:
        """a_k(theta_0) at a point."""
        steady = cls(loss)
        evaluated(steady, point)
        return steady.base or []

    def _before(self, number: int, amount: Tensor) -> Tensor:
        assert self.base is not None
        if number >= len(self.base) or self.base[number].shape != amount.shape:
            raise LookupError("the computation takes another course where parameters are moved")
        return self.base[number].to(amount)
