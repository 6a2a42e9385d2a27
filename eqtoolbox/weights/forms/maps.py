"""Maps between biases, and what reads one: the constants that a shift goes through."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eqtoolbox.weights.forms.stack import Parameters


@dataclass(frozen=True)
class Map:
    """What a parameter does to a vector: W u, u W, or an elementwise product."""

    name: str
    kind: Literal["rows", "columns", "diagonal"]

    def of(self, weight: Tensor, vector: Tensor) -> Tensor:
        """The image of the vector, or of every column of a matrix."""
        if self.kind == "diagonal":
            return (weight if vector.dim() == 1 else weight[:, None]) * vector.to(weight)
        return (weight if self.kind == "rows" else weight.mT) @ vector.to(weight)

    def back(self, weight: Tensor, cotangent: Tensor) -> Tensor:
        """The transpose of `of` for the same weight."""
        kind = {"rows": "columns", "columns": "rows", "diagonal": "diagonal"}[self.kind]
        return Map(self.name, kind).of(weight, cotangent)  # type: ignore[arg-type]

    def by_weight(self, vector: Tensor, cotangent: Tensor) -> Tensor:
        """Derivative of <cotangent, of(weight, vector)> by the weight."""
        if self.kind == "diagonal":
            return vector * cotangent
        outer = torch.outer(cotangent, vector)
        return outer if self.kind == "rows" else outer.mT

    def width(self, shape: tuple[int, ...]) -> int:
        """Length of the vectors that it takes."""
        return shape[1 if self.kind == "rows" else 0]

    def height(self, shape: tuple[int, ...]) -> int:
        """Length of the vectors that it makes."""
        return shape[-1 if self.kind == "columns" else 0]


@dataclass(frozen=True)
class Reader:
    """A bias behind linear maps: it sees a constant u as M u, M their product times `factor`."""

    maps: tuple[Map, ...]  # in the order that they are run
    bias: str
    factor: float = 1.0

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether each map takes what the one before makes, and the bias what the last one does.

        Not where parts of a vector are cut out, joined or added on the way.
        """
        taken = [m.width(shapes[m.name]) for m in self.maps[1:]]
        *made, last = [m.height(shapes[m.name]) for m in self.maps]
        return taken == made and shapes[self.bias] == (last,)

    def along(self, params: Parameters, vector: Tensor) -> list[Tensor]:
        """`factor` times the vector before the first map and after each."""
        found = [self.factor * vector]
        for m in self.maps:
            found.append(m.of(params[m.name], found[-1]))
        return found

    def back(self, params: Parameters, cotangent: Tensor) -> list[Tensor]:
        """What comes back before each map and after the last, in their order; without `factor`."""
        found = [cotangent]
        for m in reversed(self.maps):
            found.append(m.back(params[m.name], found[-1]))
        return found[::-1]

    def pulled(self, params: Parameters, cotangent: Tensor) -> Tensor:
        """M^T cotangent."""
        return self.factor * self.back(params, cotangent)[0]

    def matrix(self, params: Parameters) -> Tensor:
        """M."""
        first = self.maps[0]
        weight = params[first.name]
        return self.along(params, torch.eye(first.width(tuple(weight.shape))).to(weight))[-1]
