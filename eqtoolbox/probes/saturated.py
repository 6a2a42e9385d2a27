"""Saturated losses: what rounding does to Hessian products where a loss has almost vanished.

A probability next to 1 is rounded by as much as it is short of it: its gradient is off by percents,
and products of the second derivative are not symmetric, though nothing in the loss is wrong.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from eqtoolbox.linalg.krylov import Asymmetric
from eqtoolbox.probes.float64 import rounded_share
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.watch.snapshot import NotApplicable

if TYPE_CHECKING:  # for types alone
    from eqtoolbox.probes.operators import DifferentiatedOperator

EXPLAINS = 10.0  # roundings of the gradient, up to which products are not symmetric for it
MOST = 0.1  # of the gradient, above which its second derivative is rounding alone
Found = TypeVar("Found")


def despite_rounding(
    search: Callable[[], Found],
    operator: "DifferentiatedOperator",
    objective: Objective,
    params: Parameters,
) -> Found:
    """What a search finds; where rounding makes products unsymmetric, its residuals say so.

    Raises:
        Asymmetric: rounding does not explain it.
        NotApplicable: rounding is all that is left.
    """
    try:
        return search()
    except Asymmetric as error:
        rounded = rounded_share(objective, params, operator.gradient)
        if error.share > EXPLAINS * rounded:
            raise
        if rounded > MOST:
            raise NotApplicable(
                f"the loss has almost vanished: rounding puts its gradient {rounded:.0%} off, and "
                "its second derivative is lost; measure earlier, or train in float64"
            ) from error
        operator.accuracy = max(operator.accuracy, EXPLAINS * rounded)
        return search()
