"""Steps: elements of a discovered group, each a linear map of parameters and of their duals.

An element T moves parameters; gradients and the buffers of an optimizer, which pair with them, move
by T^-T. Discrete elements and rotations are orthogonal: both are the same map.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.weights.families.discrete import Permuting, SignFlip
from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters, ParameterSymmetry


@dataclass(frozen=True, kw_only=True, eq=False)
class Step(ABC):
    """One element T of one symmetry's group."""

    symmetry: ParameterSymmetry

    @abstractmethod
    def on(self, tensors: Parameters) -> dict[str, Tensor]:
        """T of those of its tensors that are given."""

    @property
    def inverse(self) -> "Step":
        """T^-1."""
        raise NotImplementedError

    @property
    def dual(self) -> "Step":
        """T^-T: itself if orthogonal."""
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class Permuted(Step):
    """Thing k replaced by thing order[k]."""

    symmetry: Permuting
    order: Tensor

    def on(self, tensors: Parameters) -> dict[str, Tensor]:
        return self.symmetry.permuted(tensors, self.order)

    @property
    def inverse(self) -> "Permuted":
        return Permuted(symmetry=self.symmetry, order=self.order.argsort())


@dataclass(frozen=True, kw_only=True, eq=False)
class Flipped(Step):
    """The given units reflected."""

    symmetry: SignFlip
    units: Tensor

    def on(self, tensors: Parameters) -> dict[str, Tensor]:
        return self.symmetry.flipped(tensors, self.units)

    @property
    def inverse(self) -> "Flipped":
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaled(Step):
    """e^(c_i A_i) of every unit i, A_i diagonal."""

    symmetry: ContinuousSymmetry
    coefficients: Tensor

    def on(self, tensors: Parameters) -> dict[str, Tensor]:
        return self.symmetry.transform(tensors, self.coefficients)

    @property
    def inverse(self) -> "Scaled":
        return Scaled(symmetry=self.symmetry, coefficients=-self.coefficients)

    @property
    def dual(self) -> "Scaled":
        return self.inverse


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixed(Step):
    """A matrix M of every block: M on its legs of sign +, M^-T on the others; det < 0 allowed."""

    symmetry: MatrixSymmetry
    matrices: Tensor  # (blocks, d, d)

    def on(self, tensors: Parameters) -> dict[str, Tensor]:
        against = torch.linalg.inv(self.matrices).mT
        made: dict[str, Tensor] = {}
        for leg in self.symmetry.legs:
            if leg.name in tensors:
                old = made.get(leg.name, tensors[leg.name])
                made[leg.name] = leg.mixed(old, self.matrices, against, old.clone())
        return made

    @property
    def inverse(self) -> "Mixed":
        return Mixed(symmetry=self.symmetry, matrices=torch.linalg.inv(self.matrices))

    @property
    def dual(self) -> "Mixed":
        return Mixed(symmetry=self.symmetry, matrices=torch.linalg.inv(self.matrices).mT)


def applied(steps: Iterable[Step], tensors: Parameters) -> dict[str, Tensor]:
    """All tensors after these steps, in their order."""
    moved = dict(tensors)
    for step in steps:
        moved.update(step.on(moved))
    return moved
