"""One member or more of every continuous family, with the shapes that it acts on."""

import torch
from torch import Tensor

from eqtoolbox.weights.families.bias_shift import BiasShift
from eqtoolbox.weights.families.compensation import Compensation
from eqtoolbox.weights.families.diagonal import (
    DiagonalSymmetry,
    GainRescale,
    GatedRescale,
    Rescale,
    Scale,
)
from eqtoolbox.weights.families.general_linear import GeneralLinear, Rope
from eqtoolbox.weights.families.head import HeadRotation, HeadScale, HeadShift
from eqtoolbox.weights.families.homogeneity import Homogeneity
from eqtoolbox.weights.families.input_rotation import InputRotation
from eqtoolbox.weights.families.translation import Translation
from eqtoolbox.weights.forms.diagonal import Leg, leg
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.forms.linear import Term, shift
from eqtoolbox.weights.forms.maps import Map, Reader
from eqtoolbox.weights.parameter import ContinuousSymmetry

SHAPES: dict[str, tuple[int, ...]] = {
    "w": (4, 6), "b": (4,), "v": (3, 4), "c": (3,), "t": (6, 3, 2), "q": (12, 5), "k": (5, 6),
    "s": (4, 4), "g": (4,), "d": (6,), "e": (5, 4),
}  # fmt: skip


def point(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=rng, dtype=torch.float64) for n, s in SHAPES.items()}


def axis(name: str, along: int, rate: float = 1.0) -> Leg:
    """All indices of an axis, a unit each."""
    every = torch.arange(SHAPES[name][along])
    rates = torch.full((len(every),), rate, dtype=torch.float64)
    return leg(name, SHAPES[name], along, every, every, rates)


def diagonal(kind: type[DiagonalSymmetry], *legs: Leg) -> DiagonalSymmetry:
    return kind(name="d", dimension=4, legs=legs)


def rows(name: str, along: int, sign: int = 1, blocks: int = 1) -> MatrixLeg:
    """All indices of an axis in so many blocks."""
    every = torch.arange(SHAPES[name][along])
    return MatrixLeg(name, along, every.reshape(blocks, 1, -1), sign)


def groups(name: str, along: int, of: list[int]) -> Term:
    return shift(name, SHAPES[name], along, torch.tensor(of), max(of) + 1)


QUERIES = MatrixLeg("q", 0, torch.tensor([[[0, 2, 4], [1, 3, 5]], [[6, 8, 10], [7, 9, 11]]]), 1)
PAIRS = MatrixLeg("q", 0, torch.arange(12).reshape(3, 2, 2), 1)
DIRECT = Reader((Map("v", "rows"),), "c")
LONGER = Reader((Map("g", "diagonal"), Map("v", "rows")), "c", 0.5)
MEMBERS: dict[str, ContinuousSymmetry] = {
    "rescale": diagonal(Rescale, axis("w", 0), axis("b", 0), axis("v", 1, -1.0)),
    "rescale at rates": diagonal(Rescale, axis("w", 0, 2.0), axis("v", 1, -1.0), axis("g", 0, 0.5)),
    "rescale of a loop": diagonal(Rescale, axis("s", 0), axis("s", 1, -1.0)),
    "gated": diagonal(GatedRescale, axis("e", 1), axis("v", 1, -1.0)),
    "gain": diagonal(GainRescale, axis("g", 0), axis("b", 0), axis("e", 1, -1.0)),
    "scale": diagonal(Scale, axis("w", 0), axis("b", 0)),
    "general linear": GeneralLinear(
        name="g", dimension=16, legs=(rows("w", 0), rows("b", 0), rows("v", 1, -1))
    ),
    "grouped queries": GeneralLinear(
        name="g", dimension=18, legs=(QUERIES, rows("k", 1, -1, blocks=2))
    ),
    "general linear loop": GeneralLinear(
        name="g", dimension=16, legs=(rows("s", 0), rows("s", 1, -1))
    ),
    "rope": Rope(name="r", dimension=6, legs=(PAIRS, rows("k", 1, -1, blocks=3))),
    "translation": Translation(
        name="t", dimension=17,
        shifts=(
            groups("t", 1, [0, 0, 0]), groups("c", 0, [-1, 0, -1]), groups("g", 0, [0, 1, 2, 3]),
        ),
    ),
    "translation of groups": Translation(
        name="t", dimension=13, shifts=(groups("t", 0, [0, 0, 0, 1, 1, 1]), groups("b", 0, [0] * 4))
    ),
    "compensation": Compensation(
        name="c", dimension=3, first="e", second="b", entries=torch.tensor([0, 1, 3])
    ),
    "centred compensation": Compensation(
        name="c", dimension=3, first="g", second="b", entries=torch.arange(4), centred=True
    ),
    "bias shift": BiasShift(name="b", dimension=4, source="b", offset=0, readers=(DIRECT,)),
    "bias shift through maps": BiasShift(
        name="b", dimension=4, source="b", offset=0, readers=(LONGER, DIRECT)
    ),
    "homogeneity": Homogeneity(name="h", dimension=1, rates=(("w", 1.0), ("c", 2.0)), degree=3.0),
    "head scale": HeadScale(name="h", dimension=1, rates=(("v", 1.0), ("c", 1.0))),
    "head shift": HeadShift(name="h", dimension=3, bias="c"),
    "head rotation": HeadRotation(name="h", dimension=3, legs=(rows("v", 0), rows("c", 0))),
    "input rotation": InputRotation(name="i", dimension=15, legs=(rows("w", 1, -1),), axis=-1),
}  # fmt: skip
