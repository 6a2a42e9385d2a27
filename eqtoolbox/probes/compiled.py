"""Compiled products: on request, as long as they are the eager ones to rounding and faster."""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from eqtoolbox.linalg.curvature import Hessian
from eqtoolbox.linalg.product_program import ProductProgram
from eqtoolbox.linalg.vectors import add, norm, random_like
from eqtoolbox.probes.fastest import ROUNDING, faster, timed
from eqtoolbox.probes.operators import HALF, operator
from eqtoolbox.probes.self_test import SelfTest
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.tree import tensors

logger = logging.getLogger("eqtoolbox")


def given(objective: Objective) -> list[Tensor]:
    """What the loss reads of its step beside the parameters: batch and buffers."""
    return [*tensors(objective.batch), *objective.buffers.values()]


def programmed(objective: Objective, params: Parameters) -> ProductProgram | str:
    """The program of products of this loss, or why there is none."""
    try:
        return ProductProgram(objective, params, _direction(params), given(objective))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler says to a loss
        return str(error).strip().partition("\n")[0][:160] or type(error).__name__


def by_a_program(
    objective: Objective,
    params: Parameters,
    test: SelfTest,
    program: Callable[[], ProductProgram | str],
) -> SelfTest:
    """The self-test with the way "compiled" if that is right and pays, else with the reason."""
    why: ProductProgram | str
    if test.mode != "exact" or len(objective.pieces) > 1 or test.coarsest == HALF:
        why = "they are not those of one graph of one scale"
    elif not isinstance(why := program(), str):
        with _exact(objective, params, test) as known:
            along, compiled = _direction(params), why.at(params, given(objective))
            known(along)  # builds the graph
            expected, seconds = timed(known, along)
            if faster(compiled, known, along, expected, seconds, _rounding(test)):
                return replace(test, way="compiled")
        why = "not the same, or no faster"
    return replace(test, reason=f"{test.reason}; products are not compiled: {why}")


def bind(
    made: Hessian,
    program: ProductProgram | str,
    objective: Objective,
    params: Parameters,
    test: SelfTest,
) -> None:
    """Have `made` multiply by the program, if that is right at its parameters and its batch.

    A program has the branches and numbers of the step it was recorded at: one product of both
    tells whether they are those of this step.
    """
    if isinstance(program, str):
        logger.warning("products of this step are eager: %s", program)
        return
    compiled, along = program.at(params, given(objective)), _direction(params)
    expected = made(along)
    apart = norm(add(expected, compiled(along), -1.0)) / max(norm(expected), 1e-300)
    if apart <= _rounding(test):
        _ = made.gradient  # of the graph that goes
        made.release()
        made.by = compiled
    else:
        logger.warning("products of this step are eager: compiled ones are %.1e off", apart)


def _direction(params: Parameters) -> Parameters:
    return random_like(params, torch.Generator().manual_seed(0))


def _rounding(test: SelfTest) -> float:
    return max(ROUNDING, 10 * test.coarsest)


def _exact(objective: Objective, params: Parameters, test: SelfTest) -> Hessian:
    made = operator(objective, params, test)
    assert isinstance(made, Hessian)
    return made
