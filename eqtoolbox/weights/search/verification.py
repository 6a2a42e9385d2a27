"""Verification: proposed parameter symmetries are checked by numbers before they are used.

At order 1 one gradient serves every unit of every proposal (`search.slopes`), so that what is
broken is located by it. At order 0 the product of all transformations is tested at once and halved
where it fails. A proposal that is broken escapes only where its defect is a polynomial or analytic
function that vanishes at the element drawn: with probability zero, up to rounding.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from eqtoolbox.replay.gradients import leaf, valued
from eqtoolbox.replay.heap import give_back
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.weights.parameter import (
    ContinuousSymmetry,
    Parameters,
    ParameterSymmetry,
    Status,
)
from eqtoolbox.weights.search.moves import Move, by_name, move, moved, moved_alone, moved_on
from eqtoolbox.weights.search.point import Point
from eqtoolbox.weights.search.slopes import Slopes
from eqtoolbox.weights.search.stream import streamed

Loss = Callable[[dict[str, Tensor]], Tensor]
S = TypeVar("S", bound=ParameterSymmetry)


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
    return next(_on_the_way([function], params, [moves]))


def _on_the_way(
    functions: Iterable[Loss], params: Parameters, steps: Iterable[Sequence[Move]]
) -> Iterator[Tensor]:
    """A function after each step from `params`, which goes on from where the last one led."""
    large = isinstance(params, Point) and not params.whole
    owned = params.lasting if isinstance(params, Point) else ()
    there: dict[str, Tensor] = {}
    statistics: dict[str, Tensor] = {}
    gone: list[Sequence[Move]] = []
    versions: list[int] = []
    for function, moves in zip(functions, steps, strict=True):
        if large:
            give_back()
        if versions != [t._version for t in there.values()]:  # the function wrote to parameters
            there = moved(params, gone[0])
            for before in gone[1:]:
                moved_on(there, owned, before)
        if gone:
            moved_on(there, owned, moves)
        else:
            there = moved(params, moves)
        gone.append(moves)
        versions = [t._version for t in there.values()]
        statistics = _statistics(params, moves, statistics)
        if large:
            give_back()
        with torch.no_grad(), params.scope() if isinstance(params, Point) else nullcontext():
            found = valued(function, {**_leaves(there), **statistics})
        yield found.clone() if large else found  # it may be a part of what is written over


@unobserved()
def _leaves(there: dict[str, Tensor]) -> dict[str, Tensor]:
    """To differentiate by, as losses may; made where no mode looks on, which takes much longer."""
    return {n: leaf(p) for n, p in there.items()}


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
    loss: Loss,
    params: Parameters,
    moves: Sequence[Sequence[Move]],
    value: Tensor,
    small: float,
    last: Loss | None = None,
) -> list[float]:
    """Relative change of the loss where all are moved once, then once more, and so on.

    Up to the first change that is not small. Later moves go in the opposite order, so that those
    that lead back meet what those before them made: of x -> a x, x -> x + b first b is undone.

    Args:
        moves: of every proposal as many, one to follow the other.
        last: another loss of this value, which is to keep it at the end of the way.
    """
    found: list[float] = []
    steps = [*zip(*moves, strict=True)]
    losses = [*[loss] * (len(steps) - 1), last or loss][: len(steps)]
    for after in _on_the_way(losses, params, steps):
        found.append(_change(after, value))
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
    """Parameters at the moved point, and gradients by those that are wanted; zero where unused.

    All at once, or for a large model one after the other: no piece outlives its call of `receive`.
    """
    statistics = _statistics(params, moves)
    if statistics:
        alone, function = function, lambda p: alone({**p, **statistics})
    if not params.whole:
        each = by_name(moves)
        made = lambda n: moved_alone(params, n, each.get(n, ()))
        with params.scope():
            seen = None if moves else params.seen
            streamed(function, list(params), made, receive, wanted, params.release, seen)
        return
    leaves = {n: p.detach().requires_grad_() for n, p in moved(params, moves).items()}
    asked = {n: p for n, p in leaves.items() if wanted is None or n in wanted}
    found: tuple[Tensor | None, ...] = (None,) * len(asked)
    with params.scope():
        value = function(leaves)
        if value.requires_grad and asked:
            found = torch.autograd.grad(value, list(asked.values()), allow_unused=True)
    pairs = zip(asked.items(), found, strict=True)
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
