"""Lie derivatives and consistencies of known truth: lie-deriv's formulas beside ours."""

from typing import Any

import numpy as np
import torch
from lie_deriv_formulas import derivative, rotation_consistency, shifted, stretched
from timing import interleaved
from torch import Tensor, nn

from eqtoolbox.symmetry import (
    O3,
    SO2,
    SO3,
    Equivariance,
    Translations,
    check_action,
    equivariance_error,
    lie_derivative,
)
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.linear import vectors
from eqtoolbox.symmetry.actions.resampling import FourierShift, Turn, band_limited
from eqtoolbox.symmetry.groups import Scalings

REPEATS = 15
Row = dict[str, Any]


class Classifier(nn.Module):
    """Circular convolution, square, mean, softmax: invariant to every shift below a quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 5, padding=2, padding_mode="circular", bias=False)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).square().mean((-2, -1))).softmax(-1)


class Corner(nn.Module):
    """Softmax of a linear map of the first quarter of the image: not invariant."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x[..., :16, :16].flatten(1)).softmax(-1)


def lie_derivatives() -> list[Row]:
    """Change of class probabilities per pixel of shift, on band-limited periodic images."""
    torch.manual_seed(0)
    x = band_limited(torch.randn(32, 1, 32, 32), cycles=0.2)
    claim = Equivariance(Translations((2.0,), whole=False), FourierShift((-1,)), trivial)
    found = []
    for name, f in (("pooled squares", Classifier()), ("corner", Corner())):
        f = f.requires_grad_(False)
        calls = {
            "lie-deriv": lambda f=f: derivative(f, x, shifted),
            "ours": lambda f=f: lie_derivative(f, x, claim)[0],
        }
        times = interleaved(calls, repeats=REPEATS)
        ours = calls["ours"]()
        found.append(
            {
                "case": f"Lie derivative of shifts, {name}",
                "truth": by_differences(f, x),
                "lie-deriv": rms(calls["lie-deriv"]()),
                "ours": ours.rate,
                "our verdict": ours.verdict,
                "time ours / lie-deriv": times.ratio("ours", "lie-deriv"),
            }
        )
    return [*found, *tangents(), never_turned(), stretch(), *mirrored()]


def by_differences(f: nn.Module, x: Tensor) -> float:
    """The rate by central differences of float64 responses to Fourier shifts of 1e-4 pixels."""
    wide, act = f.double(), FourierShift((-1,))
    with torch.no_grad():
        there, back = (wide(act((s * 1e-4,), x.double())) for s in (1, -1))
    f.float()
    return rms((there - back) / 2e-4)


def rms(change: Tensor) -> float:
    return float(change.double().square().sum(-1).mean().sqrt())


def tangents() -> list[Row]:
    """-du/dx of a sine of wavelength 16: the tangent that the warp hands to the model."""
    phase = 2 * torch.pi * torch.arange(64) / 16
    x = torch.sin(phase).expand(1, 1, 64, 64).contiguous()
    truth = (-torch.cos(phase) * 2 * torch.pi / 16).expand(1, 1, 64, 64)
    inner = (..., slice(4, -4))  # away from the border, which the warp repeats
    own = FourierShift((-1,)).tangent(torch.ones(1), x)
    found = []
    for mode in ("bilinear", "bicubic"):
        warped = derivative(lambda x: x, x, lambda x, t, m=mode: shifted(x, t, m))
        errors = [float((t - truth)[inner].norm() / truth[inner].norm()) for t in (warped, own)]
        found.append(
            {
                "case": f"tangent of a shift, {mode}: relative error",
                "truth": 0.0,
                "lie-deriv": errors[0],
                "ours": errors[1],
            }
        )
    return found


def never_turned() -> Row:
    """np.pi // 16 is 0.0: a network that knows nothing of rotations is consistent to 100 %."""
    torch.manual_seed(0)
    x = band_limited(torch.randn(64, 1, 32, 32), cycles=0.1)
    f = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)).requires_grad_(False)
    turn = Equivariance(SO2(), Turn(), trivial)
    ours = equivariance_error(f, x, turn, samples=64)
    angles = 2 * np.pi * (np.arange(256) + 0.5) / 256
    return {
        "case": "consistency under rotation of a random linear classifier",
        "truth": float(np.mean([rotation_consistency(f, x, a) for a in angles])),
        "lie-deriv": rotation_consistency(f, x, np.pi // 16),
        "ours": ours.consistency,
        "our verdict": ours.verdict,
        "note": f"lie-deriv turns by np.pi // 16 = {np.pi // 16}",
    }


def stretch() -> Row:
    """A stretch whose second diagonal entry is zero is not the identity at 0."""
    x = band_limited(torch.randn(2, 1, 16, 16), cycles=0.1)
    away = float((stretched(x, torch.zeros(())) - x).norm() / x.norm())
    action = lambda k, x: stretched(x, torch.tensor(float(k)))
    try:
        check_action(Scalings(), action, x, name="stretch")
        said = "accepted"
    except ValueError as error:
        said = f"refused: {error}"
    note = "distance of the stretched images at 0"
    return {"case": "stretch by 1", "truth": 0.0, "lie-deriv": away, "ours": said, "note": note}


def mirrored() -> list[Row]:
    """The volume of three vectors is a pseudo-scalar: derivatives cannot see the mirror."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, 3)
    volume = lambda x: torch.linalg.det(x)[:, None]
    slopes = [r.rate for r in lie_derivative(volume, x, Equivariance(SO3(), vectors, trivial))]
    full = equivariance_error(volume, x, Equivariance(O3(), vectors, trivial))
    return [
        {
            "case": "volume taken for an O(3) invariant",
            "truth": "violated",
            "lie-deriv": f"every derivative is zero ({max(slopes):.1e})",
            "ours": full.relative_error,
            "our verdict": full.verdict,
        }
    ]
