"""Drawing: colours that everybody tells apart, and ranges that leave room for the lines."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from eqtoolbox.report.drawing import DARK, DASHES, PALETTE, dash, usual

# Machado, Oliveira, Fernandes 2009: what is left of linear RGB without cones of one kind.
BLIND = {
    "none": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]),
    "tritanopia": np.array([
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ]),
}  # fmt: skip
PAPERS = [(PALETTE, "#fcfbf8"), (DARK, "#16181c")]


def linear(colour: str) -> NDArray[np.float64]:
    """Linear RGB of a hexadecimal colour."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ottosson 2020: coordinates in which distance is difference to the eye, 0 to 1."""
    cones = np.array([
        [0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ])  # fmt: skip
    mixed = np.array([
        [0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ])  # fmt: skip
    return mixed @ np.cbrt(cones @ rgb)


def nearest(colours: tuple[str, ...]) -> float:
    """The least difference of two colours to any eye."""
    seen = [
        [oklab(np.clip(eye @ linear(colour), 0, 1)) for colour in colours] for eye in BLIND.values()
    ]
    pairs = (pair for colours in seen for pair in itertools.combinations(colours, 2))
    return min(float(np.linalg.norm(a - b)) for a, b in pairs)


def contrast(colour: str, paper: str) -> float:
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted(float(weights @ linear(c)) for c in (colour, paper))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("colours", "paper"), PAPERS)
def test_colours_are_told_apart_by_every_eye_and_on_their_paper(
    colours: tuple[str, ...], paper: str
) -> None:
    assert nearest(colours) > 0.075
    assert min(contrast(colour, paper) for colour in colours) >= 3.0  # WCAG 2.1, 1.4.11


def test_colours_that_only_some_eyes_tell_apart_are_near() -> None:
    assert nearest(("#3f7fc1", "#8d6fc0")) < 0.02  # blue and violet, to protanopes
    assert contrast("#f0e442", "#fcfbf8") < 1.5


def test_every_colour_has_a_dash_of_its_own() -> None:
    assert len({dash(colour) for colour in PALETTE}) == len(PALETTE) == len(DASHES) == len(DARK)


def test_a_range_without_extremes_keeps_nearly_all_heights() -> None:
    rng = np.random.default_rng(0)
    heights = np.concatenate([[50.0, -40.0], rng.normal(1.0, 0.1, 200)])
    low, high = usual([heights.tolist()])["range"]
    assert -1 < low <= 0 < high < 2
    assert ((heights > low) & (heights < high)).mean() > 0.95
    assert usual([heights[2:].tolist()]) == {}
    assert usual([[None]]) == {} == usual([])
