"""Covariance: gradient and Hessian at T theta are those at theta, carried along by T."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from eqtoolbox.linalg.vectors import add, norm, random_like
from eqtoolbox.probes.engine import Engine
from eqtoolbox.record.record import verdict
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.weights.families.discrete import Permuting, SignFlip
from eqtoolbox.weights.orbit.reflection import Move
from eqtoolbox.weights.parameter import DiscreteSymmetry


class Covariance:
    """Residuals of T^T g(T theta) = g(theta) and T^T H(T theta) T = H(theta) at one snapshot."""

    def __init__(self, snapshot: Snapshot, engine: Engine, rng: torch.Generator) -> None:
        self._snapshot, self._engine = snapshot, engine
        self._direction = random_like(snapshot.before, rng)
        self.gradient, self._product = self._at(snapshot.before, self._direction)
        coarsest = engine.test(snapshot).coarsest
        least = max(coarsest, *(torch.finfo(p.dtype).eps for p in snapshot.before.values()))
        near = self._at(_nudged(snapshot.before, coarsest, rng), self._direction)
        self.floors = [max(least, apart) for apart in self._apart(*near)]  # sums round, too

    def residuals(
        self, members: list[DiscreteSymmetry], rng: torch.Generator
    ) -> tuple[float, float]:
        """Of first and second order, along a random element: one gradient and one product."""
        moves = [_element(member, rng) for member in members]
        apply = partial(_applied, moves)
        gradient, product = self._at(apply(self._snapshot.before), apply(self._direction), apply)
        back = moves[::-1]
        return self._apart(_applied(back, gradient), _applied(back, product))

    def _at(
        self, params: Parameters, direction: Parameters, move: Move = dict
    ) -> tuple[Parameters, Parameters]:
        operator = self._engine.operator(self._snapshot.at(params, move))
        return operator.gradient, operator(direction)

    def _apart(self, gradient: Parameters, product: Parameters) -> tuple[float, float]:
        first = norm(add(gradient, self.gradient, -1.0)) / max(norm(self.gradient), 1e-300)
        second = norm(add(product, self._product, -1.0)) / max(norm(self._product), 1e-300)
        return first, second


def laws(
    covariance: Covariance, families: dict[str, list[DiscreteSymmetry]], rng: torch.Generator
) -> Iterator[Measurement]:
    """Both laws of every family.

    One element of all families together tells what each leaves at most; where that is more than
    rounding, each family has an element of its own.
    """
    every = covariance.residuals([m for members in families.values() for m in members], rng)
    pairs = list(zip(every, covariance.floors, strict=True))
    shared = all(verdict(value, floor) == "holds" for value, floor in pairs)
    for k, (family, members) in enumerate(families.items()):
        alone = not shared and len(families) > 1
        found = covariance.residuals(members, rng) if alone else every
        for order, value, floor in zip(("first", "second"), found, covariance.floors, strict=True):
            yield Measurement(
                f"{order}_order",
                value,
                family,
                floor=floor,
                verdict=verdict(value, floor),
                matvecs=int(order == "second" and (alone or k == 0)),
            )


def _element(member: DiscreteSymmetry, rng: torch.Generator) -> Move:
    """A random involution of the group: units exchanged in random pairs, or flipped at random."""
    if isinstance(member, Permuting):
        order = torch.randperm(member.dimension + 1, generator=rng)
        half = len(order) // 2
        return lambda params: member.exchange(params, order[:half], order[half : 2 * half])
    if isinstance(member, SignFlip):
        chosen = torch.randint(2, (member.dimension,), generator=rng).nonzero().flatten()
        return lambda params: member.flipped(params, chosen)
    raise TypeError(f"expected a Permutation or SignFlip, got {type(member).__name__}")


def _applied(moves: list[Move], params: Parameters) -> Parameters:
    moved = dict(params)
    for move in moves:
        moved.update(move(moved))
    return moved


def _nudged(params: Parameters, coarsest: float, rng: torch.Generator) -> Parameters:
    """Every parameter moved by about one rounding of the coarsest operation it meets."""
    draw = random_like(params, rng)

    def ulp(p: Tensor) -> float:
        return max(torch.finfo(p.dtype).eps, coarsest)

    return {n: p * (1 + ulp(p) * draw[n]) for n, p in params.items()}
