"""Verification: proposed parameter symmetries are checked by numbers before they are used.

At order 1 one gradient serves every unit of every proposal (`search.slopes`), so that what is
broken is located by it. At order 0 the product of all transformations is tested at once and halved
where it fails. A proposal that is broken escapes only where its defect is a polynomial or analytic
function that vanishes at the element drawn: with probability zero, up to rounding.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from eqtoolbox.replay.gradients import valued
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.weights.forms.stack import Owned
from eqtoolbox.weights.parameter import (
    ContinuousSymmetry,
    Parameters,
    ParameterSymmetry,
    Status,
)
from eqtoolbox.weights.search.memory import give_back
from eqtoolbox.weights.search.point import Point
from eqtoolbox.weights.search.slopes import Slopes
from eqtoolbox.weights.search.stream import streamed

Loss = Callable[[dict[str, Tensor]], Tensor]
S = TypeVar("S", bound=ParameterSymmetry)


@dataclass(frozen=True)
class Move:
    """A finite transformation of `names`; a separable one moves each by itself."""

    names: frozenset[str]  # buffers among them
    separable: bool
    apply: Callable[[Parameters], dict[str, Tensor]]


def move(symmetry: ParameterSymmetry, apply: Callable[[Parameters], dict[str, Tensor]]) -> Move:
    """A finite transformation out of a symmetry's group."""
    names = frozenset((*symmetry.names, *symmetry.buffers))
    return Move(names, symmetry.separable, apply)


def moved(params: Parameters, moves: Sequence[Move]) -> dict[str, Tensor]:
    """Parameters after one move after the other, those that are not separable last.

    Large tensors of a point lie in its own memory, until it is moved the next time.
    """
    with unobserved():
        each = _by_name(moves)
        made = {name: _moved(params, name, each.get(name, ())) for name in params}
        return _mixed(made, moves)


def _moved_on(there: dict[str, Tensor], owned: Collection[str], moves: Sequence[Move]) -> None:
    """The same of what was moved before, last first, written over where it is owned."""
    with unobserved():
        back = moves[::-1]
        _mixed(there, back)
        for name, own in _by_name(back).items():
            for one in own if name in there else ():
                given = {name: there[name]}
                there[name] = one.apply(Owned(given) if name in owned else given)[name]


def _mixed(made: dict[str, Tensor], moves: Sequence[Move]) -> dict[str, Tensor]:
    """Parameters after those moves that are not separable."""
    for one in moves:
        if not one.separable:
            made.update(one.apply(made))
    return made


def _by_name(moves: Sequence[Move]) -> dict[str, list[Move]]:
    """For every tensor the separable moves of it."""
    found: dict[str, list[Move]] = {}
    for one in moves:
        for name in one.names if one.separable else ():
            found.setdefault(name, []).append(one)
    return found


@unobserved()
def _moved(params: Parameters, name: str, moves: Sequence[Move]) -> Tensor:
    """One tensor after its own moves."""
    memory = params.written(name) if isinstance(params, Point) else None
    tensor = params[name] if memory is None else memory
    for one in moves:
        given = {name: tensor} if memory is None else Owned({name: tensor})
        tensor = one.apply(given)[name]
    return tensor if memory is None or tensor is memory else memory.copy_(tensor)


def limit(dtype: torch.dtype) -> float:
    """Largest residual that counts as rounding."""
    return 1e-10 if dtype == torch.float64 else 1e-4


def judged(symmetry: S, worst: float, dtype: torch.dtype) -> S:
    """The symmetry with its `status` for a residual.

    verified: to rounding (1e-10 in float64, 1e-4 below); approximate: within the family's own
    tolerance (the epsilon of a normalisation layer), and whatever has one where rounding is too
    coarse to tell; broken: otherwise.
    """
    status: Status = "broken"
    exact = dtype == torch.float64 or not symmetry.tolerance  # the rest float32 cannot tell apart
    if worst <= limit(dtype):
        status = "verified" if exact else "approximate"
    elif worst <= symmetry.tolerance:
        status = "approximate"
    return replace(symmetry, status=status, residual=worst)


def draw(symmetry: ContinuousSymmetry, like: Tensor, generator: torch.Generator) -> Tensor:
    """Random coefficients of a symmetry's algebra, `strength` times standard normal."""
    drawn = torch.randn(
        symmetry.dimension, generator=generator, dtype=like.dtype, device=generator.device
    )
    return (symmetry.strength * drawn).to(like)


def evaluated(function: Loss, params: Parameters, moves: Sequence[Move] = ()) -> Tensor:
    """The function where `params` are moved."""
    return next(_on_the_way(function, params, [moves]))


def _on_the_way(
    function: Loss, params: Parameters, steps: Iterable[Sequence[Move]]
) -> Iterator[Tensor]:
    """The function after each step from `params`, which goes on from where the last one led."""
    large = isinstance(params, Point) and not params.whole
    there: dict[str, Tensor] = {}
    statistics: dict[str, Tensor] = {}
    for number, moves in enumerate(steps):
        if large:
            give_back()
        if number:
            _moved_on(there, params.lasting if isinstance(params, Point) else (), moves)
        else:
            there = moved(params, moves)
        statistics = _statistics(params, moves, statistics)
        if large:
            give_back()
        with torch.no_grad(), params.scope() if isinstance(params, Point) else nullcontext():
            found = valued(function, {**there, **statistics})
        yield found.clone() if large else found  # it may be a part of what is written over


def _statistics(
    params: Parameters, moves: Sequence[Move], before: Parameters | None = None
) -> dict[str, Tensor]:
    """Running statistics after those moves that take them along."""
    if not isinstance(params, Point):
        return {}
    known = before or params.statistics
    along = [one for one in moves if not known.keys().isdisjoint(one.names)]
    return moved(known, along) if along else dict(before or {})


def change(loss: Loss, params: Parameters, moves: Sequence[Move], value: Tensor) -> float:
    """|L(moved) - L| / |L|, infinite where the loss is not finite there."""
    return _change(evaluated(loss, params, moves), value)


def _change(found: Tensor, value: Tensor) -> float:
    relative = float((found - value).abs() / value.abs().clamp_min(1e-300))
    return relative if math.isfinite(relative) else math.inf


def changes_along(
    loss: Loss, params: Parameters, moves: Sequence[Sequence[Move]], value: Tensor, small: float
) -> list[float]:
    """Relative change of the loss where all are moved once, then once more, and so on.

    Up to the first change that is not small. Later moves go in the opposite order, so that those
    that lead back meet what those before them made: of x -> a x, x -> x + b first b is undone.

    Args:
        moves: of every proposal as many, one to follow the other.
    """
    found: list[float] = []
    for value_there in _on_the_way(loss, params, zip(*moves, strict=True)):
        found.append(_change(value_there, value))
        if found[-1] > small:
            break
    return found


def joint_changes(
    loss: Loss,
    params: Parameters,
    moves: Sequence[Sequence[Move]],
    value: Tensor,
    small: float,
    failing: bool = False,
) -> list[float]:
    """Relative change of the loss for each proposal, all tried together and halved where they fail.

    Args:
        moves: for every proposal the moves to try, one to follow the other, as many for each.
        small: change up to which a set of proposals passes together.
        failing: whether it is known that they do not pass together.
    """
    if not moves:
        return []
    if not failing or len(moves) == 1:
        worst = max(changes_along(loss, params, moves, value, small), default=0.0)
        if worst <= small or len(moves) == 1:
            return [worst] * len(moves)
    half = len(moves) // 2
    first = joint_changes(loss, params, moves[:half], value, small)
    known = max(first) <= small  # then it is the others that fail
    return first + joint_changes(loss, params, moves[half:], value, small, known)


def gradients(
    function: Loss,
    params: Point,
    receive: Callable[[Parameters, Parameters], None],
    moves: Sequence[Move] = (),
    wanted: Collection[str] | None = None,
) -> None:
    """Parameters and gradient at the moved point; zero where one takes no part.

    All at once, or for a large model one after the other, and then those that are wanted alone: no
    piece outlives its call of `receive`.
    """
    statistics = _statistics(params, moves)
    if statistics:
        alone, function = function, lambda p: alone({**p, **statistics})
    if not params.whole:
        each = _by_name(moves)
        made = lambda n: _moved(params, n, each.get(n, ()))
        with params.scope():
            seen = None if moves else params.seen
            streamed(function, list(params), made, receive, wanted, params.release, seen)
        return
    leaves = {n: p.detach().requires_grad_() for n, p in moved(params, moves).items()}
    found: tuple[Tensor | None, ...] = (None,) * len(leaves)
    with params.scope():
        value = function(leaves)
        if value.requires_grad:
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    gradient = {n: torch.zeros_like(p) if g is None else g for (n, p), g in pairs}
    receive({n: p.detach() for n, p in leaves.items()}, gradient)


def residuals(
    symmetry: ContinuousSymmetry,
    loss: Loss,
    params: Mapping[str, Tensor],
    generator: torch.Generator,
) -> tuple[float, float]:
    """Residuals of order 0 along a random element of the algebra, and of order 1.

    order 0: |L(T_c theta) - L(theta)| / |L(theta)| at c and -c, order 1: of every generator, see
    `search.slopes`.
    """
    coefficients = draw(symmetry, params[symmetry.names[0]], generator)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    value = loss(leaves)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves, found, strict=True)
    gradient = {n: torch.zeros_like(params[n]) if g is None else g for n, g in pairs}
    slopes = Slopes([symmetry])
    slopes.add(params, gradient)
    order_0 = max(
        change(loss, params, [move(symmetry, symmetry.flow(c))], value.detach())
        for c in (coefficients, -coefficients)  # a dead unit is flat on one side only
    )
    return order_0, slopes.residual(0)


def verified(
    symmetry: ContinuousSymmetry,
    loss: Loss,
    params: Mapping[str, Tensor],
    generator: torch.Generator,
) -> ContinuousSymmetry:
    """One symmetry judged by the worse of its two residuals."""
    worst = max(residuals(symmetry, loss, params, generator))
    return judged(symmetry, worst, params[symmetry.names[0]].dtype)
