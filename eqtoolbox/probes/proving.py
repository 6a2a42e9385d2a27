"""Proving: Hessian products of the model at hand are tried before they are trusted."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from eqtoolbox.linalg.curvature import Hessian
from eqtoolbox.linalg.precision import Precision
from eqtoolbox.linalg.vectors import dot, norm, random_like, scale
from eqtoolbox.probes.fastest import timed
from eqtoolbox.probes.field import NO_DIFFERENCES, WRONG, Structure, structure
from eqtoolbox.probes.float64 import rounded_share
from eqtoolbox.probes.held_parameters import HeldObjective
from eqtoolbox.probes.operators import by_the_fastest_way, operator, quiet
from eqtoolbox.probes.saturated import EXPLAINS
from eqtoolbox.probes.self_test import ASYMMETRY, NO_FUNCTION, SelfTest, compared
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.watch.snapshot import NotApplicable

RANDOM = 1e-4  # change of the loss when evaluated again; rounding gives 1e-7


def self_test(
    objective: Objective,
    params: Parameters,
    timing: bool = True,
    few: Objective | None = None,
    room: float = math.inf,
) -> SelfTest:
    """Choose a mode: is the loss repeatable, are products symmetric and equal to differences?

    Exact products of a loss that detaches a part, or passes a gradient through what has none, are
    its second derivative with that part held: symmetric, and not the derivative of the gradient
    that trains, whose asymmetry tells them from products that are wrong.

    Costs about 5 gradients of the batch and 4 of few samples, of which 3 are in float64 where the
    loss has kinks. Where functions bring a backward of their own, 8 more: what they are wrong by is
    asked along the sharpest direction that is at hand, and along a random one.

    Args:
        objective, params: the loss and where it is differentiated.
        timing: whether the fastest way to exact products is looked for.
        few: the same loss on some of the samples, on which products are compared with differences
            where all operations are torch's own: what is wrong with these shows on any samples.
            None: on all.
        room: bytes that are left. Where these are few, products are compared along the smallest
            parameters, the others held.

    Raises:
        NotApplicable: the loss is random, or no mode gives right products.
        FloatingPointError: the loss or its gradient is not finite.
    """
    first, coarsest = valued(objective, params)
    repeat = abs(first - _value(objective, params)) / max(abs(first), 1e-30)
    if repeat > RANDOM:
        raise NotApplicable(
            f"the loss is random: evaluated twice on the same batch it changed by {repeat:.1%}; "
            "draw its random numbers from the global torch, numpy or python streams, which are "
            "frozen here"
        )
    test = SelfTest(mode="exact", reason="", repeat=repeat, coarsest=coarsest)
    direction = _unit(random_like(params, torch.Generator().manual_seed(0)))  # 1 may overflow
    try:
        with quiet(operator(objective, params, test)) as exact:
            product = exact(direction)
            along = _unit(product)
            second, seconds = timed(exact, along)
            nan = exact.differenced
    except torch.OutOfMemoryError:  # says nothing of the loss
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if isinstance(error, ValueError) and "must depend on the parameters" in str(error):
            raise
        why = f"no exact products ({_first_line(error)})"
        return _differences_only(objective, params, direction, test, why)
    except FloatingPointError as error:
        nan = str(error)
    if nan:
        return _differences_only(objective, params, direction, test, nan)
    test = replace(
        test, asymmetry=abs(norm(product) - dot(direction, second)) / max(norm(product), 1e-300)
    )
    if test.asymmetry > ASYMMETRY:
        off = rounded_share(objective, params, exact.gradient)
        if test.asymmetry <= EXPLAINS * off:
            small = f"of a loss that has almost vanished, whose gradient is {off:.0%} off"
            return replace(test, reason=f"symmetric but for rounding, {small}")
    exact.release(forget=True)
    made = structure(objective, params)
    if made.cuts or made.custom:  # which some samples may run and others not
        few = None
    pairs = [(along, second)]
    if made.custom:  # beside what is sharp it may be wrong
        pairs.append((direction, product))
    del direction, product
    tested = _compared(few, objective, params, pairs, test, made, room)
    if not timing:
        return tested
    return by_the_fastest_way(objective, params, tested, along, second, seconds)


def _compared(
    few: Objective | None,
    objective: Objective,
    params: Parameters,
    pairs: Sequence[tuple[Parameters, Parameters]],
    test: SelfTest,
    made: Structure,
    room: float,
) -> SelfTest:
    """Products beside differences along these directions: the first that says they are not exact.

    Args:
        few, objective, params, room: as of `self_test`.
        pairs: directions and their products.
        test, made: what is known of the loss.
    """
    names, first = HeldObjective.fitting(params, room), None
    for along, product in pairs:
        if len(names) < len(params):
            found = _by_some(few or objective, params, along, names, test, made)
        else:
            least, own = _on_few(few, objective, params, along, product, test)
            found = compared(least, params, along, own, test, made)
        if found.measures != "exact":
            return found
        first = first or found
    assert first is not None
    return first


def _by_some(
    objective: Objective,
    params: Parameters,
    along: Parameters,
    names: Sequence[str],
    test: SelfTest,
    made: Structure,
) -> SelfTest:
    """The comparison of a block of the Hessian, that of these parameters."""
    some, part = {n: params[n] for n in names}, _unit({n: along[n] for n in names})
    said = f"on {len(names)} of {len(params)} parameters, the smallest, to stay within memory="
    with quiet(operator(objective, params, test)) as exact:
        product = exact.restrict(*names)(part)
    if not norm(product) > 0:
        return replace(test, reason=f"symmetric and repeatable; nothing to compare {said}")
    exact.release(forget=True)
    held = HeldObjective(objective, {n: p for n, p in params.items() if n not in some})
    found = compared(held, some, part, product, test, made)
    return replace(found, reason=f"{found.reason}, {said}")


def _on_few(
    few: Objective | None,
    objective: Objective,
    params: Parameters,
    along: Parameters,
    product: Parameters,
    test: SelfTest,
) -> tuple[Objective, Parameters]:
    """The loss on few samples and its product along a direction; of all where these have none."""
    if few is None or few is objective:
        return objective, product
    try:
        with quiet(operator(few, params, test)) as exact:
            found = exact(along)
            there = norm(found) > 0 and not exact.differenced
    except (*NO_DIFFERENCES, FloatingPointError):
        there = False
    return (few, found) if there else (objective, product)


def _differences_only(
    objective: Objective, params: Parameters, direction: Parameters, test: SelfTest, why: str
) -> SelfTest:
    """The self-test of differences alone: are they smooth and symmetric?"""
    bent, refused = structure(objective, params).bent, ""
    for smooth in (False, True) if bent else (True, False):  # a kink asks for float64 first
        tried = replace(test, mode="differenced", reason=why, smooth=smooth)
        try:
            differenced = operator(objective, params, tried)
            first = differenced if isinstance(differenced, Hessian) else differenced.steady
            product = first(direction)
            along = _unit(product)
            back = dot(direction, differenced(along))
        except FloatingPointError as error:  # no second derivative, as there is no first
            raise FloatingPointError(why) from error
        except NO_DIFFERENCES as error:
            refused = refused or _first_line(error)
            continue
        gap = abs(norm(product) - back) / max(norm(product), 1e-300)
        if gap > WRONG:
            raise NotApplicable(f"{why}; and differences cannot replace it: {NO_FUNCTION}")
        return replace(tried, asymmetry=gap)
    raise NotApplicable(f"{why}; and there are no differences in its place: {refused}")


def _unit(v: Parameters) -> Parameters:
    """v over its length; itself where it has none."""
    return scale(1 / length, v) if (length := norm(v)) > 1e-30 else v


def valued(objective: Objective, params: Parameters) -> tuple[float, float]:
    """The loss, and eps of the coarsest operation in it."""
    with Precision() as precision:
        value = _value(objective, params)
    return value, precision.eps


def _value(loss: Callable[[Parameters], torch.Tensor], params: Parameters) -> float:
    with torch.no_grad():
        return float(loss(params))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
