"""Warm starts: a search for eigenpairs that begins with what the last one found.

The last vectors as a block meet eigenpairs that hardly moved in one product each, and a direction
that was next in line, half of it random, looks for what may have grown beside them. Where they have
moved, their sum is the better start: a polynomial of higher degree turns it, and as much of a
random vector beside it sees what they cannot.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.linalg.krylov import Krylov
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Vector, add, combine, fitted_to, norm, random_like

CALM = 0.05  # share of ‖Hs‖ outside the block, s the sum of it, up to which blocks are cheaper


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What a search leaves to the next one."""

    vectors: list[dict[str, Tensor]]  # orthonormal, of the operator's space
    guard: dict[str, Tensor] | None = None  # H of the next in line; of any length


def begun(
    operator: LinearOperator, capacity: int, generator: torch.Generator, kept: WarmStart
) -> Krylov:
    """A space that holds H of each of the vectors and of the guard, or of their noisy sum alone.

    Parameters are matched by name and shape: new ones start at zero, missing ones are dropped.

    Args:
        operator: H.
        capacity: vectors in memory.
        generator: of the random parts.
        kept: of an operator like this one.
    """
    like = operator.space.like
    fitted = [fitted_to(like, v) for v in kept.vectors[: capacity - 1]]
    vectors = [v for v in fitted if norm(v) > 0]
    if not vectors:
        return Krylov(operator, capacity, generator)
    guard = fitted_to(like, kept.guard or {})
    total = combine(vectors, [1.0] * len(vectors))
    guard = _noisy(guard if norm(guard) > 0 else total, generator)
    krylov = Krylov(operator, capacity, generator, [total, *vectors[1:], guard])
    if krylov.step(0) and krylov.leaving() > CALM:
        moved = Krylov(operator, capacity, generator, _noisy(total, generator))
        moved.matvecs = krylov.matvecs
        moved.step()
        return moved
    while krylov.size < min(len(vectors) + 1, operator.size):
        krylov.step(0)
    return krylov


def _noisy(v: Vector, generator: torch.Generator) -> dict[str, Tensor]:
    """`v` and as much of a random vector."""
    noise = random_like(v, generator)
    return add(v, noise, norm(v) / norm(noise))
