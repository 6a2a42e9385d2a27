"""Equivariances: transformations of parameters that move the outputs in a known way."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eqtoolbox.weights.parameter import ContinuousSymmetry, ParameterSymmetry
from eqtoolbox.weights.search.explanation import Trial, explained
from eqtoolbox.weights.search.head import propose_head
from eqtoolbox.weights.search.homogeneous import propose_homogeneity
from eqtoolbox.weights.search.moves import move
from eqtoolbox.weights.search.point import Point
from eqtoolbox.weights.search.problem import Problem
from eqtoolbox.weights.search.slopes import Slopes
from eqtoolbox.weights.search.verification import Loss, draw, evaluated, gradients, judged


def equivariances(problem: Problem) -> Iterator[ContinuousSymmetry]:
    """Transformations that move the outputs in a known way; orders 0 and 1 of f, not of the loss.

    Of a large model in float64 order 0 of all outputs is decisive, also of what an epsilon leaves.

    Few samples say what fails, where these are looked at, and all of them what is verified.

    order 0: |f(T_c theta) - R_c f| / |f|, of all outputs; order 1, where that is not decisive:
    |u . (J K_c - rho_c)| for a random u, over the scale of both terms (`search.slopes`).
    """
    proposed = propose_equivariances(problem)
    outputs, point, y = problem.outputs, problem.point, problem.made
    if outputs is None or y is None or not proposed:
        return
    drawn = [draw(s, y, problem.random) for s in proposed]
    worst = _each(outputs, point, y, list(zip(proposed, drawn, strict=True)), problem.small)
    found = [judged(s, w, y.dtype) for s, w in zip(proposed, worst, strict=True)]
    exact = y.dtype == torch.float64  # where order 0 of all outputs is decisive
    near = [k for k, s in enumerate(found) if s.status == "approximate"]
    asked = [k for k in range(len(found)) if not exact or (k in near and point.whole)]
    u = torch.randn(y.shape, generator=problem.random, dtype=y.dtype, device=problem.random.device)
    u = u.to(y)
    slopes = Slopes([proposed[k] for k in asked])
    if asked:
        names = {n for k in asked for n in proposed[k].names}
        gradients(lambda p: (u * outputs(p)).sum(), point, slopes.add, wanted=names)
    for n, k in enumerate(asked):
        c, turned = drawn[k], proposed[k].rho(y, drawn[k])
        slope = float((slopes.of(n) * c.to(torch.float64)).sum()) - float((u * turned).sum())
        scale = slopes.scale(n) * float(c.norm()) + float(u.norm() * turned.norm())
        found[k] = judged(proposed[k], max(abs(slope) / max(scale, 1e-300), worst[k]), y.dtype)
        if found[k].status == "approximate":
            (found[k],) = explained(outputs, point, y, [Trial(found[k], c, slope, scale)], u)
    for k in (k for k in near if k not in asked):
        trials, known = [Trial(found[k], drawn[k])], lambda: problem.amounts
        (found[k],) = explained(outputs, point, y, trials, u, known)
    if problem.every_output is not outputs:
        found = _of_all(problem, found, drawn)
    yield from (s for s in found if s.status != "broken")


def _of_all(
    problem: Problem, found: Sequence[ContinuousSymmetry], drawn: Sequence[Tensor]
) -> list[ContinuousSymmetry]:
    """The same, where what is verified on few samples is on all."""
    outputs, y = problem.every_output, problem.made_of_all
    assert outputs is not None, "few samples have outputs where all have"
    assert y is not None
    held = [k for k, s in enumerate(found) if s.status == "verified"]
    elements = [(found[k], drawn[k]) for k in held]
    defects = _each(outputs, problem.point, y, elements, problem.small)
    whole = {
        k: judged(s, max(s.residual, defect), y.dtype)
        for k, (s, _), defect in zip(held, elements, defects, strict=True)
    }
    return [whole.get(k, s) for k, s in enumerate(found)]


def _each(
    outputs: Loss,
    point: Point,
    y: Tensor,
    elements: Sequence[tuple[ContinuousSymmetry, Tensor]],
    small: float,
) -> list[float]:
    """Defect of each; what an epsilon may break is apart, so that it hides nothing."""
    found = [0.0] * len(elements)
    for near in (False, True):
        which = [k for k, (s, _) in enumerate(elements) if bool(s.tolerance) == near]
        tried = [elements[k] for k in which]
        if tried:
            for k, defect in zip(which, _defects(outputs, point, y, tried, small), strict=True):
                found[k] = defect
    return found


def _defects(
    outputs: Loss,
    point: Point,
    y: Tensor,
    elements: Sequence[tuple[ContinuousSymmetry, Tensor]],
    small: float,
) -> list[float]:
    """|f(T_c theta) - R_c f| / |f| of each, all tried after each other and halved if they fail."""
    expected = y
    for symmetry, c in elements:
        expected = symmetry.transform_outputs(expected, c)
    there = evaluated(outputs, point, [move(s, s.flow(c)) for s, c in elements])
    found = float((there - expected).norm() / y.norm().clamp_min(1e-300))
    if found <= small or len(elements) == 1:
        return [found] * len(elements)
    half = len(elements) // 2
    parts = (elements[:half], elements[half:])
    return [d for part in parts for d in _defects(outputs, point, y, part, small)]


def propose_equivariances(problem: Problem) -> list[ContinuousSymmetry]:
    """Those that the trace shows; of two that move the same, that of the head."""
    if problem.outputs is None:
        return []
    head = list(propose_head(problem.trace))
    names = [set(s.names) for s in head]
    whole = [s for s in propose_homogeneity(problem.trace) if set(s.names) not in names]
    return [*whole, *head]


def confirmed(problem: Problem, known: Sequence[ParameterSymmetry]) -> bool:
    """Whether outputs move with all of these, to rounding or to what an epsilon may leave."""
    every = [s for s in known if isinstance(s, ContinuousSymmetry)]
    outputs, y = problem.every_output, problem.made_of_all
    if not every or outputs is None or y is None:
        return not every
    elements = [(s, draw(s, y, problem.random)) for s in every]
    defects = _each(outputs, problem.point, y, elements, problem.small)
    return all(d <= max(s.tolerance, problem.small) for s, d in zip(every, defects, strict=True))
