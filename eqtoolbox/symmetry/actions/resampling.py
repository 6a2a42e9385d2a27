"""Actions that lose an edge or interpolate: shifts into zero, sub-pixel shifts, turns, zooms.

What cannot be compared (pixels that left, corners that turned in) is set to zero by `inside`, and
what interpolation does to the images enters the floor. White noise at 45 degrees comes back with
an error of 0.5 whatever the model: low-pass the images (0.05 cycles a pixel leave 0.01).
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from eqtoolbox.expect.bounds import some
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Natural, NotNegative, Positive
from eqtoolbox.symmetry.groups.matrices import Rows, matrix

Interpolation = Literal["bicubic", "bilinear", "nearest"]


@checked
@dataclass(frozen=True)
class Shift:
    """Whole-pixel shifts into zeros: the action of Translations(reach).

    Two entries move height and width of an image, one the time of a series, three a volume.

    Args:
        reach: largest shift used along each of the last dimensions, in pixels.
        margin: further pixels at each edge that are not compared: the model's receptive field.

    Example:
        >>> Shift((1, 1))((0, 1), torch.tensor([[1, 2, 3]]))
        tensor([[0, 1, 2]])
    """

    reach: Annotated[tuple[Natural, ...], some("integers >= 0")]
    margin: Natural = 0

    def __call__(self, g: tuple[int, ...], x: Tensor) -> Tensor:
        sizes = self._sizes(x)
        moves = [max(-n, min(n, int(s))) for s, n in zip(g, sizes, strict=True)]
        kept = [slice(max(0, -s), n - max(0, s)) for s, n in zip(moves, sizes, strict=True)]
        pad = [edge for s in reversed(moves) for edge in (max(0, s), max(0, -s))]
        inner: Tensor = x[(Ellipsis, *kept)]  # type: ignore[index]
        return F.pad(inner, pad)

    def inside(self, x: Tensor) -> Tensor:
        """The pixels that no two shifts can lose.

        Raises:
            ValueError: none are left.
        """
        sizes = self._sizes(x)
        edges = [2 * r + self.margin for r in self.reach]
        if any(2 * edge >= n for edge, n in zip(edges, sizes, strict=True)):
            raise ValueError(
                f"no pixel of {'x'.join(map(str, sizes))} is compared after shifts of "
                f"{self.reach} with a margin of {self.margin}; shift less"
            )
        mask = torch.zeros(sizes, dtype=torch.bool, device=x.device)
        mask[tuple(slice(e, n - e) for e, n in zip(edges, sizes, strict=True))] = True
        return torch.where(mask, x, torch.zeros_like(x))

    def _sizes(self, x: Tensor) -> tuple[int, ...]:
        if x.dim() < len(self.reach):
            raise ValueError(f"expected {len(self.reach)} dimensions, got shape {tuple(x.shape)}")
        return tuple(x.shape[-len(self.reach) :])


@checked
@dataclass(frozen=True)
class FourierShift:
    """Shifts of a periodic signal by any number of pixels: the action of real Translations.

    The signal's trigonometric interpolation is shifted. At an even length the wave that changes
    sign at every pixel has no phase: it is dropped, and `band_limited` data has none.

    Args:
        dims: the dimensions that move, one for each entry of the element.

    Example:
        >>> FourierShift((-1,))((1.0,), torch.tensor([1.0, 0.0, 0.0])).round().abs()
        tensor([0., 1., 0.])
    """

    dims: Annotated[tuple[int, ...], some("dimensions")] = (-2, -1)

    def __call__(self, g: tuple[float, ...], x: Tensor) -> Tensor:
        for dim, shift in zip(self.dims, g, strict=True):
            if shift != 0:
                x = self._filtered(x, dim, lambda k, s=shift: torch.exp(-1j * s * k))
        return x

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """-du/dx by Fourier transform, exact to rounding, per pixel."""
        total = torch.zeros_like(x)
        for dim, weight in zip(self.dims, generator.tolist(), strict=True):
            if weight:
                total = total + weight * self._filtered(x, dim, lambda k: -1j * k)
        return total

    def _filtered(self, x: Tensor, dim: int, response: Any) -> Tensor:
        length = x.shape[dim]
        wave = 2.0 * math.pi * torch.fft.rfftfreq(length, dtype=torch.float64, device=x.device)
        factor = response(wave)
        if length % 2 == 0:
            factor[-1] = 0.0
        shape = [1] * x.dim()
        shape[dim] = len(factor)
        spectrum = torch.fft.rfft(x, dim=dim)
        moved = spectrum * factor.reshape(shape).to(spectrum.dtype)
        back: Tensor = torch.fft.irfft(moved, n=length, dim=dim)
        return back.to(x.dtype)


@checked
@dataclass(frozen=True)
class Turn:
    """Images turned about their centre by any element of SO(2) or O(2), interpolated.

    Multiples of 90 degrees of square images are exact; use quarter_turn where they suffice.

    Args:
        mode: interpolation, bicubic or bilinear.
        radius: part of the half side that is compared; corners turn in from outside.
        tolerance: relative defect of the laws that the self-check accepts.

    Example:
        >>> from eqtoolbox.symmetry.groups.matrices import SO2
        >>> Turn()(SO2().identity, torch.ones(1, 1, 4, 4)).shape
        torch.Size([1, 1, 4, 4])
    """

    mode: Interpolation = "bicubic"
    radius: Positive = 0.8
    tolerance: NotNegative = 0.2

    def __call__(self, g: Rows, x: Tensor) -> Tensor:
        if x.dim() < 3:
            raise ValueError(f"expected images (batch, ..., H, W), got shape {tuple(x.shape)}")
        return _sampled(x, torch.linalg.inv(matrix(g)), self.mode)

    def inside(self, x: Tensor) -> Tensor:
        """The disc in the middle."""
        return _disc(x, self.radius)

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """-(A r) . grad x with Fourier derivatives, r from the centre in pixels, inside the disc.

        Exact for band-limited images that vanish towards the edge.
        """
        return _flow(x, generator)


@checked
@dataclass(frozen=True)
class Zoom:
    """Images scaled about their centre by 2^k, an element k of Scalings(whole=False).

    Args:
        mode: as for `Turn`.
        tolerance: likewise.
        radius: part of the half side that is compared.

    Example:
        >>> Zoom()(0.0, torch.ones(1, 1, 4, 4)).shape
        torch.Size([1, 1, 4, 4])
    """

    mode: Interpolation = "bicubic"
    radius: Positive = 0.3
    tolerance: NotNegative = 0.2

    def __call__(self, g: float, x: Tensor) -> Tensor:
        return _sampled(x, 2.0 ** (-g) * torch.eye(2, dtype=torch.float64), self.mode)

    def inside(self, x: Tensor) -> Tensor:
        """The disc in the middle."""
        return _disc(x, self.radius)

    def tangent(self, generator: Tensor, x: Tensor) -> Tensor:
        """-r . grad x with Fourier derivatives, per unit of the factor's logarithm."""
        return _flow(x, float(generator) * torch.eye(2, dtype=torch.float64))


@checked
def band_limited(x: Tensor, cycles: Positive = 0.1) -> Tensor:
    """Images without frequencies above `cycles` per pixel, so that interpolation can be trusted.

    Args:
        x: (..., height, width), or (..., length) by its last dimension alone when 1-d.
        cycles: cut-off in cycles per pixel, at most 0.5.

    Example:
        >>> band_limited(torch.ones(8, 8)).mean()
        tensor(1.)
    """
    if x.dim() == 0:
        raise ValueError("expected x with a length to filter along, got one number")
    dims = (-2, -1) if x.dim() > 1 else (-1,)
    for dim in dims:
        spectrum = torch.fft.rfft(x, dim=dim)
        keep = torch.fft.rfftfreq(x.shape[dim], device=x.device) <= cycles
        shape = [1] * x.dim()
        shape[dim] = len(keep)
        x = torch.fft.irfft(spectrum * keep.reshape(shape), n=x.shape[dim], dim=dim)
    return x


def _sampled(x: Tensor, back: Tensor, mode: str) -> Tensor:
    """x at back · r for every pixel r from the centre; components right and up."""
    height, width = x.shape[-2:]
    if torch.equal(back, torch.eye(2, dtype=torch.float64)):
        return x
    up = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    pixels = torch.diag(torch.tensor([width, height], dtype=torch.float64))
    theta = torch.linalg.inv(pixels) @ up @ back @ up @ pixels
    affine = torch.cat([theta, torch.zeros(2, 1, dtype=torch.float64)], dim=1).to(x)
    images = x.reshape(1, -1, height, width)
    grid = F.affine_grid(affine[None], [1, 1, height, width], align_corners=False)
    return F.grid_sample(images, grid, mode=mode, align_corners=False).reshape(x.shape)


def _disc(x: Tensor, radius: float) -> Tensor:
    right, up = _coordinates(x)
    reach = radius * min(x.shape[-2:]) / 2
    return torch.where(right**2 + up**2 <= reach**2, x, torch.zeros_like(x))


def _flow(x: Tensor, generator: Tensor) -> Tensor:
    """d/ds x(exp(-s A) r)."""
    right, up = _coordinates(x)
    derivative = FourierShift((-2, -1)).tangent
    along = -derivative(torch.tensor([0.0, 1.0]), x), derivative(torch.tensor([1.0, 0.0]), x)
    a = generator.tolist()
    speed = a[0][0] * right + a[0][1] * up, a[1][0] * right + a[1][1] * up
    change: Tensor = speed[0].to(x) * along[0] + speed[1].to(x) * along[1]
    return -change


def _coordinates(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels to the right of the centre (W,) and above it (H, 1)."""
    height, width = x.shape[-2:]
    right = torch.arange(width, device=x.device, dtype=torch.float64) - (width - 1) / 2
    down = torch.arange(height, device=x.device, dtype=torch.float64) - (height - 1) / 2
    return right, -down[:, None]
