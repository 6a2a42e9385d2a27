"""Products: the Hessian as an operator, in the mode and by the way that a self-test chose."""

from dataclasses import replace
from functools import partial

import torch

from eqtoolbox.linalg import finite_difference, hessian
from eqtoolbox.linalg.curvature import Hessian
from eqtoolbox.linalg.finite_difference import FiniteDifference
from eqtoolbox.linalg.widened import WidenedOperator
from eqtoolbox.probes.fastest import ROUNDING, faster, worth_asking
from eqtoolbox.probes.field import widened
from eqtoolbox.probes.self_test import ROUGH, SelfTest
from eqtoolbox.replay.objective import Objective, Parameters

DifferentiatedOperator = (
    Hessian | FiniteDifference | WidenedOperator
)  # all know the gradient as well
PARTS = 8  # pieces of the batch where memory is low
HALF = torch.finfo(torch.float16).eps
SCALE = 2.0**16  # of a loss with float16 inside, as torch's gradient scaler starts


def operator(objective: Objective, params: Parameters, test: SelfTest) -> DifferentiatedOperator:
    """The Hessian in the mode that the self-test chose."""
    if test.mode == "differenced":
        return finite_difference(objective, params) if test.smooth else widened(objective, params)
    made = partial(
        hessian,
        params=params,
        accuracy=10 * test.coarsest if test.coarsest > ROUGH else None,
        scale=SCALE if test.coarsest == HALF else 1.0,
        copy=False,  # replays keep what they are given
    )
    if test.mode == "split" or len(objective.pieces) > 1:  # as accumulated: one graph at a time
        pieces = objective.split(PARTS)
        losses, weights = [piece for piece, _ in pieces], [weight for _, weight in pieces]
        return made(losses, weights=weights, retain=False)
    forward = test.mode == "exact" and test.way == "forward"
    retain = test.mode == "exact" and not forward
    return made(objective, retain=retain, forward=forward)


def by_the_fastest_way(
    objective: Objective,
    params: Parameters,
    test: SelfTest,
    along: Parameters,
    product: Parameters,
    seconds: float,
) -> SelfTest:
    """The self-test with the way to exact products that takes the least time.

    Args:
        along, product, seconds: a vector, its product on a retained graph, and what that took.
    """
    if test.mode != "exact" or len(objective.pieces) > 1 or not worth_asking(along, seconds):
        return test
    other = replace(test, way="forward")
    forward, retained = operator(objective, params, other), operator(objective, params, test)
    rounding = max(ROUNDING, 10 * test.coarsest)
    with quiet(forward) as new, quiet(retained) as known:
        return other if faster(new, known, along, product, seconds, rounding) else test


def quiet(made: DifferentiatedOperator) -> Hessian:
    """Of an exact mode: what is said of its products is the self-test's."""
    assert isinstance(made, Hessian)
    made.instead = str
    return made
