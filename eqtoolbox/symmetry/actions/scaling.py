"""Actions of scalings and signs: homogeneous and odd functions."""

from dataclasses import dataclass

from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Finite


@checked
@dataclass(frozen=True)
class Degree:
    """x -> a^degree x for a = 2^k, an element k of Scalings; exact, being powers of two.

    f is homogeneous of degree d when it is equivariant from Degree(1) to Degree(d).

    Example:
        >>> import torch
        >>> Degree(2)(1, torch.tensor([3.0]))
        tensor([12.])
    """

    degree: Finite = 1.0

    def __call__(self, g: float, x: Tensor) -> Tensor:
        moved: Tensor = x * 2.0 ** (g * self.degree)
        return moved

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """degree · x, per unit of log a (Euler)."""
        return self.degree * float(generator) * x


@checked
@dataclass(frozen=True)
class Parity:
    """x -> s^power x for a sign s: odd with power 1, even (nothing moves) with power 0.

    Example:
        >>> import torch
        >>> Parity()(-1, torch.tensor([3.0]))
        tensor([-3.])
    """

    power: int = 1

    def __call__(self, g: int, x: Tensor) -> Tensor:
        return x if self.power % 2 == 0 or g == 1 else -x


@checked
@dataclass(frozen=True)
class Negated:
    """x -> (-1)^g x, for the powers g of a mirror: what changes sign under it.

    Example:
        >>> import torch
        >>> Negated()(1, torch.tensor([3.0]))
        tensor([-3.])
    """

    def __call__(self, g: int, x: Tensor) -> Tensor:
        return -x if g % 2 else x
