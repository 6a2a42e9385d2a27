"""The self-test's verdict: what exact Hessian products are worth, from how they compare."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from eqtoolbox.probes.field import Comparison, Structure, compare
from eqtoolbox.probes.held_parameters import HeldObjective
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.watch.snapshot import NotApplicable

EngineMode = Literal["exact", "split", "rebuilt", "differenced"]
Way = Literal["retained", "forward", "compiled"]
ASYMMETRY = 2e-3  # float32 networks reach 7e-5, wrong double backwards start at 8e-3
ROUGH = 1e-6  # eps from which on a loss is of half precision
NO_FUNCTION = (
    "the gradient that trains is not the gradient of one function: a part of the loss is detached, "
    "straight-through or has a surrogate gradient"
)


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What was tried once before Hessian products are trusted; NaN for what could not be."""

    mode: EngineMode
    reason: str  # why not the faster mode, or what the test could not see
    repeat: float  # relative change of the loss when evaluated again
    asymmetry: float = math.nan  # |<u, Hv> - <v, Hu>| / |Hv| with u along Hv
    difference: float = math.nan  # |Hu - differenced Hu| / |Hu|
    coarsest: float  # eps of the coarsest operation in the loss
    trained: float = math.nan  # the same as the loss trains, autocasts included
    jacobian_asymmetry: float = math.nan  # |J - J^T| / |J|, J the training gradient's derivative
    held: bool = False  # exact products hold a part of the loss, which J does not
    way: Way = "retained"  # of exact products: on a retained graph, forward over reverse, ...
    smooth: bool = False  # differences in the parameters' own precision are right

    @property
    def measures(self) -> Literal["exact", "held", "differenced"]:
        """What products are of: exact, held or differenced."""
        return "held" if self.held else "differenced" if self.mode == "differenced" else "exact"


def compared(
    objective: Objective | HeldObjective,
    params: Parameters,
    along: Parameters,
    exact: Parameters,
    test: SelfTest,
    made: Structure,
) -> SelfTest:
    """The self-test after comparing an exact product with the derivative of the gradient.

    Args:
        objective, params: the loss and where it is differentiated.
        along, exact: a direction and its exact product.
        test: what is known so far.
        made: what the loss is made of.

    Raises:
        NotApplicable: exact products are wrong, and nothing can replace them.
    """
    doubt = test.asymmetry > max(ASYMMETRY, 2 * test.coarsest)
    if test.coarsest > ROUGH:  # differences of half precision are off by tens of percent
        found = Comparison(why_not="low precision")
    else:
        found = compare(objective, params, along, exact, doubt=doubt, made=made)
    test = replace(
        test, difference=found.difference, jacobian_asymmetry=found.asymmetry, smooth=found.smooth
    )
    if doubt and found.why_not:
        raise NotApplicable(
            f"Hessian products are not symmetric ({test.asymmetry:.1%}) and differences cannot "
            f"replace them ({found.why_not}): some operation has a wrong second derivative; "
            f"{_suspects(made)}"
        )
    if found.why_not:
        why = f"symmetric and repeatable; {found.why_not}: not comparable"
        held = bool(made.cuts) and not made.custom  # it may matter, and nothing tells
        why = f"products are of the loss with a part held: {made.reason}; {why}" if held else why
        return replace(test, held=held, reason=why)
    if not found.differs and not doubt:
        return replace(test, reason="symmetric, repeatable, equal to differences")
    if not found.one_function and doubt:
        raise NotApplicable(
            f"{NO_FUNCTION} (asymmetry {found.asymmetry:.2g}), and with that part held some "
            f"operation has a wrong second derivative: products are {test.asymmetry:.1%} "
            f"unsymmetric; {_suspects(made)}"
        )
    if not doubt and (not found.one_function or (made.cuts and not made.custom)):
        return replace(test, held=True, reason=_held(found, made))
    why = (
        f"exact products are wrong: {test.difference:.1%} off differences, which are symmetric, "
        f"{test.asymmetry:.1%} unsymmetric; {_suspects(made)}"
    )
    return replace(test, mode="differenced", reason=why)


def _held(found: Comparison, made: Structure) -> str:
    """What is measured where a part of the loss is held."""
    return (
        f"products are of the loss with a part held: {made.reason}, and the gradient that trains "
        f"has another derivative J ({found.difference:.1%} off, |J - J^T| / |J| = "
        f"{found.asymmetry:.2g})"
    )


def _suspects(made: Structure) -> str:
    """Whose second derivative may be wrong."""
    if not made.custom:
        return "no function of the loss brings a backward of its own"
    return f"look at the backward of {', '.join(made.custom[:3])}"
