"""Galilean boosts of periodic flows, and what a boost can do to hidden features of a network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Finite
from eqtoolbox.symmetry.actions.resampling import FourierShift

Velocity = tuple[float]  # an element: how often the velocity of one step is added


@checked
@dataclass(frozen=True)
class Boost:
    """A Galilean boost u -> u + c of a periodic velocity field, seen from the moving frame.

    Element (k,) of Translations((n,)) is the velocity c = k · speed; after a time t the field has
    moved by k · cells grid cells, c t / dx: 0 for the input. With real k (`whole=False`) the shift
    is that of the trigonometric interpolation, see `FourierShift`, and Lie derivatives exist.

    Args:
        speed: velocity of one step of the group.
        cells: grid cells that one step moves the field by, along the last dimension.

    Example:
        >>> Boost(0.5, cells=1)((2,), torch.tensor([0.0, 0.0, 1.0]))
        tensor([1., 2., 1.])
    """

    speed: Finite
    cells: Finite = 0

    def __call__(self, g: Velocity, x: Tensor) -> Tensor:
        return moved(x, g[0] * self.cells) + g[0] * self.speed

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """speed - cells du/dx, by Fourier transform, per step of the group."""
        return _carried(x, float(generator) * self.cells) + float(generator) * self.speed


@checked
@dataclass(frozen=True, eq=False)  # a tensor has no equality
class FeatureBoost:
    """A boost as affine layers pass it on: k times a constant of each channel, moved k · cells.

    Layers that are not affine leave features without any action of the group: the next one up
    cannot tell a wind from a wave.

    Args:
        velocity: what one step adds, (channels, 1) for features (batch, channels, n), else
            (features,).
        cells: as for `Boost`.

    Example:
        >>> FeatureBoost(torch.tensor([[1.0], [2.0]]), 1)((1,), torch.eye(2)[None])
        tensor([[[1., 2.],
                 [3., 2.]]])
    """

    velocity: Tensor
    cells: float = 0

    @classmethod
    def fitted(
        cls, elements: list[Velocity], x: Tensor, images: list[Tensor], cells: float
    ) -> "FeatureBoost | None":
        """The one nearest to what the elements did to a layer; None for too few features to tell.

        Args:
            elements: K of them.
            x: the layer's output, (batch, ..., n) or (batch, features).
            images: its output at each S_g x, K tensors like x.
            cells: of the boost.
        """
        places = x.shape[-1] if x.dim() > 2 else 1
        if x.dim() < 2 or len(x) * places < 4 or any(y.shape != x.shape for y in images):
            return None
        dims = (0, -1) if x.dim() > 2 else (0,)
        total, weight = torch.zeros_like(x[:1]).mean(dims, keepdim=True)[0], 0.0
        for (k,), y in zip(elements, images, strict=True):
            total = total + k * (y - moved(x, k * cells)).mean(dims, keepdim=True)[0]
            weight += k * k
        return cls(total / weight, cells) if weight > 0 else None

    def __call__(self, g: Velocity, x: Tensor) -> Tensor:
        return moved(x, g[0] * self.cells) + g[0] * self.velocity

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """velocity - cells dh/dx, per step of the group."""
        return _carried(x, float(generator) * self.cells) + float(generator) * self.velocity

    def __repr__(self) -> str:
        return f"a constant of each channel, moved by {self.cells:g} cells"


def moved(x: Tensor, cells: float) -> Tensor:
    """x moved along its last dimension, by interpolation where the shift is no whole number."""
    if cells == int(cells):
        return torch.roll(x, int(cells), -1) if cells else x
    return FourierShift((-1,))((cells,), x)


def _carried(x: Tensor, cells: float) -> Tensor:
    if not cells:
        return torch.zeros_like(x)
    return FourierShift((-1,)).tangent(torch.tensor([cells], dtype=torch.float64), x)
