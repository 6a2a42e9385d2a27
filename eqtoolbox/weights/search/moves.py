"""Moves: finite transformations of parameters, made in memory that is there already."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from eqtoolbox.linalg.vectors import wide
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.weights.forms.stack import Owned
from eqtoolbox.weights.parameter import Parameters, ParameterSymmetry
from eqtoolbox.weights.search.point import Point


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
        each = by_name(moves)
        made = {name: moved_alone(params, name, each.get(name, ())) for name in params}
        return _mixed(made, moves)


def moved_and_rounded(params: Parameters, moves: Sequence[Move]) -> dict[str, Tensor]:
    """The same in float64 (float32 on MPS), rounded to each tensor's own type once.

    A tensor is wide from its first move to its last.
    """
    with unobserved():
        each, mixed = by_name(moves), [one for one in moves if not one.separable]
        last = {name: k for k, one in enumerate(mixed) for name in one.names}
        made: dict[str, Tensor] = {}

        def alone(name: str) -> Tensor:
            own = each.get(name, ())
            moving = own or name in last
            return moved_alone({name: wide(params[name])}, name, own) if moving else params[name]

        def rounded(name: str) -> Tensor:
            return made.pop(name).to(params[name].dtype)

        for k, one in enumerate(mixed):
            held = [name for name in one.names if name in params]
            made.update({name: alone(name) for name in held if name not in made})
            made.update(one.apply(made))
            made.update({name: rounded(name) for name in held if last[name] == k})
        return {n: made[n] if n in made else alone(n).to(p.dtype) for n, p in params.items()}


def moved_on(there: dict[str, Tensor], owned: Collection[str], moves: Sequence[Move]) -> None:
    """The same of what was moved before, last first, written over where it is owned."""
    with unobserved():
        back = moves[::-1]
        _mixed(there, back)
        for name, own in by_name(back).items():
            for one in own if name in there else ():
                given = {name: there[name]}
                there[name] = one.apply(Owned(given) if name in owned else given)[name]


def _mixed(made: dict[str, Tensor], moves: Sequence[Move]) -> dict[str, Tensor]:
    """Parameters after those moves that are not separable."""
    for one in moves:
        if not one.separable:
            made.update(one.apply(made))
    return made


def by_name(moves: Sequence[Move]) -> dict[str, list[Move]]:
    """For every tensor the separable moves of it."""
    found: dict[str, list[Move]] = {}
    for one in moves:
        for name in one.names if one.separable else ():
            found.setdefault(name, []).append(one)
    return found


@unobserved()
def moved_alone(params: Parameters, name: str, moves: Sequence[Move]) -> Tensor:
    """One tensor after its own moves."""
    memory = params.written(name) if isinstance(params, Point) else None
    tensor = params[name] if memory is None else memory
    for one in moves:
        given = {name: tensor} if memory is None else Owned({name: tensor})
        tensor = one.apply(given)[name]
    return tensor if memory is None or tensor is memory else memory.copy_(tensor)
