"""Flow: what SGD with decay and momentum does to conserved quantities, in closed form.

With <K, g> = 0 the gradient moves a charge at second order only, so that SGD without momentum obeys

    linear     Q_{n+1} = (1 - eta gamma) Q_n
    quadratic  Q_{n+1} = (1 - eta gamma)^2 Q_n + eta^2 Q(g_n)

exactly; the modified flow of Kunin et al. replaces the powers by exponentials, at an error of the
order of eta gamma over the whole run. With momentum the velocity v takes the place of g and the
charge's slope along it becomes a second variable (`ClosedForm`). A positive Q(g) makes weights grow
and decay shrinks them: scale-symmetric weights end where both agree.
"""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """Charges under SGD with momentum, step by step: exact while <grad Q, g> = 0.

    From v' = beta v + g + gamma theta and theta' = theta - eta v', for Q homogeneous of degree k
    (2 for quadratic charges, 1 for linear ones, whose Q(d) counts as 0), with P = <grad Q, v>:

        u = beta P + k gamma Q          <grad Q(theta), v'>, since <grad Q, g> = 0
        Q' = Q - eta u + Q(eta v')      and Q(eta v') = Q(d) for the update d
        P' = u - 2 Q(d) / eta

    Rates may change from step to step. Where both rest, Q(d) = 2 eta gamma Q / (1 + beta).

    Reference:
        Kunin et al. 2021 (arXiv 2012.04728), section 5, for flows; this is their discrete form.
    """

    charge: Tensor  # Q, (charges,)
    slope: Tensor  # P, (charges,); any where momentum is zero

    @classmethod
    def after(cls, charge: Tensor, paired: Tensor, force: Tensor, *, lr: Tensor) -> "ClosedForm":
        """The course that goes on after a step.

        Args:
            charge: Q after the step.
            paired: <grad Q(theta), d> of the step's update.
            force: Q(d), 0 for linear charges.
            lr: eta of every charge, positive.
        """
        return cls(charge=charge, slope=(-paired - 2 * force) / lr)

    def step(
        self, force: Tensor, *, lr: Tensor, decay: Tensor, momentum: Tensor, degree: Tensor
    ) -> "ClosedForm":
        """After one more step; (charges,) each.

        Args:
            force: Q(d) of the step's update d, 0 for linear charges.
            lr: eta.
            decay: gamma, coupled.
            momentum: beta, without dampening and not Nesterov's.
            degree: k.
        """
        u = momentum * self.slope + degree * decay * self.charge
        moved = self.charge - lr * u + force
        return ClosedForm(charge=moved, slope=u - 2 * force / lr.clamp_min(1e-300))


@dataclass(frozen=True, kw_only=True)
class Equilibrium:
    """Where decay and gradient balance the norm of scale-symmetric weights w.

    |w|^4 tends to (eta / 2 gamma) |w|^2 |g|^2, where |w| |g| does not depend on |w|. Each step then
    turns w by sqrt(2 eta gamma), and |w|^4 comes nearer by e^{-4 eta gamma} a step. With momentum
    beta the velocity v takes the place of g: |w|^4 tends to (1 + beta) (eta / 2 gamma) |w|^2 |v|^2,
    a step turns w by sqrt(2 eta gamma / (1 + beta)), and eta / (1 - beta) is the rate otherwise.

    Reference:
        van Laarhoven 2017 (arXiv 1706.05350); Wan et al. 2021 (arXiv 2006.08419).
    """

    norm: Tensor  # |w| now, (units,)
    target: Tensor  # |w| at equilibrium for the present |w| |g|, (units,)
    angle: float  # radians a step at equilibrium, sqrt(2 eta gamma / (1 + beta))
    effective_lr: Tensor  # eta / ((1 - beta) |w|^2), (units,)
    steps: Tensor  # until |w|^4 is within 10 % of its equilibrium, (units,)


def equilibrium(
    norm: Tensor, gradient: Tensor, *, lr: float, decay: float, momentum: float = 0.0
) -> Equilibrium:
    """The equilibrium of SGD at constant rates.

    Args:
        norm: |w| of every unit, (units,), positive.
        gradient: |g| of every unit, |v| with momentum, (units,); a mean over steps says more than
            one step.
        lr: eta, positive.
        decay: gamma, positive: without it there is no equilibrium.
        momentum: beta, without dampening and not Nesterov's.

    Raises:
        ValueError: a rate is not positive.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> found = equilibrium(one, one, lr=0.1, decay=0.05)
        >>> round(float(found.target), 6), round(found.angle, 6)
        (1.0, 0.1)
    """
    for name, rate in (("lr", lr), ("decay", decay)):
        if not rate > 0:
            raise ValueError(f"{name} must be positive for an equilibrium, got {rate}")
    rate = lr / (1 - momentum)
    target = ((1 + momentum) * lr / (2 * decay)) ** 0.25 * (norm * gradient).sqrt()
    apart = ((norm / target.clamp_min(1e-300)) ** 4 - 1).abs()
    steps = (apart / 0.1).clamp_min(1.0).log() / (4 * rate * decay)
    return Equilibrium(
        norm=norm,
        target=target,
        angle=math.sqrt(2 * lr * decay / (1 + momentum)),
        effective_lr=rate / norm.square(),
        steps=steps,
    )
