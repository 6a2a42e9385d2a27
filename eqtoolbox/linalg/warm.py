"""Warm starts: a search for eigenpairs that begins with what the last one found.

The last vectors as a block meet eigenpairs that hardly moved in one product each, and a direction
that was next in line, half of it random, looks for what may have grown beside them. Where they have
moved, their sum is the better start: a polynomial of higher degree turns it, and as much of a
random vector beside it sees what they cannot.
"""

from collections.abc import Sequence

import torch

from eqtoolbox.linalg.krylov import Krylov
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Vector, add, combine, norm, random_like

CALM = 0.05  # share of ‖Hs‖ outside the block, s the sum of it, up to which blocks are cheaper


def begun(
    operator: LinearOperator,
    capacity: int,
    generator: torch.Generator,
    vectors: Sequence[Vector],
    guard: Vector | None,
) -> Krylov:
    """A space that holds H of each of the vectors and of the guard, or of their noisy sum alone.

    Args:
        operator: H.
        capacity: vectors in memory.
        generator: of the random parts.
        vectors: orthonormal, of an operator like this one.
        guard: the direction that was next in line.
    """
    total = combine(vectors, [1.0] * len(vectors))
    guard = _noisy(total if guard is None else guard, generator)
    krylov = Krylov(operator, capacity, generator, [total, *vectors[1:], guard])
    if krylov.step(0) and krylov.leaving() > CALM:
        moved = Krylov(operator, capacity, generator, _noisy(total, generator))
        moved.matvecs = krylov.matvecs
        moved.step()
        return moved
    while krylov.size < min(len(vectors) + 1, operator.size):
        krylov.step(0)
    return krylov


def _noisy(v: Vector, generator: torch.Generator) -> Vector:
    """`v` and as much of a random vector."""
    noise = random_like(v, generator)
    return add(v, noise, norm(v) / norm(noise))
