"""Output law: the gradient after an orthogonal move is the moved gradient."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from eqtoolbox.weights.parameter import Parameters
from eqtoolbox.weights.search.moves import Move, moved
from eqtoolbox.weights.search.slopes import dot


class OutputLaw:
    """g(T theta) = T g(theta), compared per parameter by random projections.

    Each tensor is projected on a product of random vectors, one an axis, so that of a gradient
    only two numbers a tensor are kept.
    """

    def __init__(self, elements: Sequence[Move]) -> None:
        self.elements = elements
        self.sketches: dict[str, float] = {}
        self.sizes: dict[str, float] = {}
        self.differences: dict[str, float] = {}

    def add(self, gradient: Parameters) -> None:
        """A piece of the gradient at theta."""
        names = {n for element in self.elements for n in element.names}
        chosen = {n: g for n, g in gradient.items() if n in names}
        for name, tensor in moved(chosen, self.elements).items():
            self.sketches[name], self.sizes[name] = _sketch(tensor), math.sqrt(dot(tensor, tensor))

    def compare(self, _: Parameters, there: Parameters) -> None:
        """A piece of the gradient at T theta."""
        for name in there.keys() & self.sketches.keys():
            self.differences[name] = abs(_sketch(there[name]) - self.sketches[name])

    def residual(self, names: Sequence[str]) -> float:
        """Largest difference among these tensors, relative to the gradient of all of them."""
        known = [n for n in names if n in self.differences]
        if not known:
            return 0.0
        size = math.sqrt(sum(self.sizes[n] ** 2 for n in known))
        return max(self.differences[n] for n in known) / size if size > 0 else 0.0


def _sketch(tensor: Tensor) -> float:
    """Inner product with a product of fixed random vectors of unit size."""
    generator = torch.Generator().manual_seed(0)
    left = tensor
    for length in reversed(tensor.shape):
        vector = torch.randn(length, generator=generator, dtype=torch.float64).to(tensor)
        left = left @ (vector / vector.norm())
    return float(left)
