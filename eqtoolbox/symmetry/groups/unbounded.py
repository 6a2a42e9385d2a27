"""Groups without an end: translations and scalings, drawn from a bounded part of themselves."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch

from eqtoolbox.expect.bounds import OWN
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Positive
from eqtoolbox.symmetry.groups.group import Group
from eqtoolbox.symmetry.groups.matrices import counted

Vector = tuple[float, ...]


@checked
@dataclass(frozen=True)
class Translations(Group):
    """Z^d, or R^d when not `whole`: shifts that nothing wraps around; elements are tuples.

    No uniform distribution exists; entry i is drawn uniformly from [-reach[i], reach[i]].

    Raises:
        ValueError: a reach is not positive, or no integer for whole shifts.

    Example:
        >>> Translations((2, 3)).compose((1, -3), (1, -3))
        (2, -6)
    """

    reach: Annotated[tuple[float, ...], OWN]
    whole: bool = True

    def __post_init__(self) -> None:
        reach = fitted("reach", self.reach, Positive | tuple[Positive, ...])
        reach = tuple(reach) if isinstance(reach, Iterable) else (reach,)
        object.__setattr__(self, "reach", reach)
        if not reach:
            raise ValueError("reach must hold a number for each dimension, got none")
        for length in reach:
            if self.whole and length != int(length):
                raise ValueError(f"whole shifts need an integer reach, got {length}")

    @property
    def name(self) -> str:
        return f"translations{len(self.reach)}"

    @property
    def order(self) -> None:
        return None

    @property
    def exact(self) -> bool:
        return self.whole

    @property
    def uniform(self) -> bool:
        return False

    @property
    def identity(self) -> Vector:
        return tuple(0 if self.whole else 0.0 for _ in self.reach)

    def compose(self, g: Vector, h: Vector) -> Vector:
        return tuple(a + b for a, b in zip(g, h, strict=True))

    def inverse(self, g: Vector) -> Vector:
        return tuple(-a for a in g)

    def sample(self, count: int, generator: torch.Generator) -> list[Vector]:
        shape = (counted(count), len(self.reach))
        device = generator.device
        unit = torch.rand(shape, generator=generator, dtype=torch.float64, device=device).tolist()
        if not self.whole:
            return [
                tuple(r * (2 * u - 1) for r, u in zip(self.reach, row, strict=True)) for row in unit
            ]
        return [
            tuple(
                math.floor(u * (2 * r + 1)) - int(r) for r, u in zip(self.reach, row, strict=True)
            )
            for row in unit
        ]

    def generators(self) -> list[torch.Tensor]:
        """Unit vectors, one a direction; none for whole shifts, which have no derivative."""
        return [] if self.whole else list(torch.eye(len(self.reach), dtype=torch.float64))

    def element(self, generator: torch.Tensor, parameter: float) -> Vector:
        """The shift by parameter · generator."""
        return tuple((parameter * generator).tolist())


@checked
@dataclass(frozen=True)
class Scalings(Group):
    """x -> 2^k x: elements are the exponents k, whole ones (exact in floating point) or real.

    No uniform distribution exists; k is drawn uniformly from [-octaves, octaves].

    Example:
        >>> Scalings().compose(2, -3)
        -1
    """

    octaves: Positive = 3
    whole: bool = True

    @property
    def name(self) -> str:
        return "scalings"

    @property
    def order(self) -> None:
        return None

    @property
    def exact(self) -> bool:
        return self.whole

    @property
    def uniform(self) -> bool:
        return False

    @property
    def identity(self) -> float:
        return 0 if self.whole else 0.0

    def compose(self, g: float, h: float) -> float:
        return g + h

    def inverse(self, g: float) -> float:
        return -g

    def sample(self, count: int, generator: torch.Generator) -> list[float]:
        drawn = Translations((self.octaves,), self.whole).sample(count, generator)
        return [k for (k,) in drawn]

    def generators(self) -> list[torch.Tensor]:
        """One: the change of the factor's natural logarithm."""
        return [torch.ones(1, dtype=torch.float64)]

    def element(self, generator: torch.Tensor, parameter: float) -> float:
        """The exponent of 2 whose factor is exp(parameter)."""
        return parameter * float(generator) / math.log(2.0)
