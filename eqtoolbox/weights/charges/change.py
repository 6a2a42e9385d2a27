"""A change: what one step does to every charge, and the rates that it took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from eqtoolbox.weights.charges.readout import Readout
from eqtoolbox.weights.forms.form import Moments

PAIRS = 3  # theta with the gradient, with the update; the update with itself; then theta with it
FIRST = ((1.0,), (1.0,), (0.0,))  # a linear charge has no term of second order


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rate and decay that an optimizer applies to each parameter in one step."""

    lr: Mapping[str, float]  # sign included: negative where the optimizer ascends; 0 if not its
    decay: Mapping[str, float]  # gamma: theta shrinks by |lr| gamma theta

    @cached_property
    def alike(self) -> bool:
        """Whether all parameters learn and decay at the same rates."""
        return len(set(self.lr.values())) == 1 and len(set(self.decay.values())) == 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """One step's drift of every charge and its causes: (charges,) each, float64."""

    drift: Tensor  # Q(theta + d) - Q(theta) = the sum of the causes
    symmetry: Tensor  # -eta <K, g>: 0 while the symmetry holds, -eta c for an equivariance
    decay: Tensor  # -eta gamma <K, theta>
    finite_step: Tensor  # Q(d) for quadratic charges, 0 for linear ones
    slopes: Tensor  # <K_i, g> of every generator, (dimension,)
    learning_rates: Tensor  # sum_n (eta - eta_n) <K_n, g_n>: 0 where they are one
    pull: float  # |g| over the parameters of all symmetries
    moved: float  # |d| over these
    beside: Tensor  # what came to the host along with it

    @property
    def optimizer(self) -> Tensor:
        """<K, d + eta (g + gamma theta)>: what else than gradient flow the step was."""
        rest = self.drift - self.symmetry - self.decay - self.finite_step
        return rest - self.learning_rates

    @property
    def resting(self) -> "Change":
        """The same of a step whose gradient counts for nothing, as loss scaling skipped it."""
        none = self.drift.new_zeros(len(self.drift))
        law = self.slopes.new_zeros(len(self.slopes))
        return replace(self, symmetry=none, decay=none, learning_rates=none, slopes=law, pull=0.0)

    @property
    def causes(self) -> dict[str, Tensor]:
        """The causes by name."""
        names = ("symmetry", "decay", "optimizer", "finite_step", "learning_rates")
        return {c: getattr(self, c) for c in names}


@dataclass(frozen=True, kw_only=True, eq=False)
class Passed:
    """One pass through what a step began from, its gradient and its end: the change follows."""

    kinds: Sequence[Moments]
    taken: Readout  # of the pairs, |g| and |d|
    pulled: bool  # whether there was a gradient
    rates: Rates
    rate: Tensor | float  # of every charge
    shrink: Mapping[str, float]  # |eta| gamma of each parameter
    degrees: Tensor  # of the charges

    def change(self, values: Tensor) -> Change:
        """What the step did, read on the host.

        Args:
            values: Q before it, (charges,).
        """
        paired, slopes = [], []
        for kind, moments in zip(self.kinds, self.taken.moments, strict=True):
            forms = kind.pair(moments[:PAIRS])
            paired.append(forms if kind.quadratic else forms * forms.new_tensor(FIRST))
            slopes.append(forms[0] if kind.alike else kind.slopes(moments))
        law, first, second = torch.cat(paired, 1)
        finite = 0.5 * second
        pulled, apart = self.rate * law, torch.zeros_like(law)
        if self.pulled and len(set(self.rates.lr.values())) > 1:
            apart = pulled - self._weighted(0, self.rates.lr)
        shrinks = {*self.shrink.values()}
        if len(shrinks) == 1:
            decay = shrinks.pop() * self.degrees.to(values) * values
        else:
            decay = self._weighted(PAIRS, self.shrink)
        pull, moved = self.taken.sizes
        return Change(
            drift=first + finite,
            symmetry=-pulled,
            learning_rates=apart,
            decay=-decay,
            finite_step=finite,
            slopes=torch.cat(slopes),
            pull=pull,
            moved=moved,
            beside=self.taken.beside,
        )

    def _weighted(self, pair: int, weights: Mapping[str, float]) -> Tensor:
        """<grad Q, w d> of every charge for one of the pairs (theta, d), w a weight a parameter."""
        pairs = zip(self.kinds, self.taken.moments, strict=True)
        return torch.cat([k.weighted(m[pair : pair + 1], weights) for k, m in pairs])
