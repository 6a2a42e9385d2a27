"""A generative model: denoisers learn a pinwheel of points, and make points out of noise."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.demos.demo import Contest, Data, Demo, Entrant, Measured, PhysicalLaw, Standing
from eqtoolbox.demos.scores import energy_distance
from eqtoolbox.enforce.averaged import averaged
from eqtoolbox.report.drawing import GREY, PALETTE, plain
from eqtoolbox.report.figures import Key, Panel
from eqtoolbox.symmetry.asymmetry import data_asymmetry
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.groups.group import Cyclic

ARMS, POINTS, NOISINGS = 3, 36, 60  # of the pinwheel; to learn from; of each point
LOUDEST, FAINTEST = 3.0, 0.03  # standard deviations of the noise
LEVELS = 18  # of the noise, on the way from it to points


def turn(g: int, x: Tensor) -> Tensor:
    """The first two of the last dimension turned by g thirds of a circle; others stay."""
    angle = 2 * math.pi * g / ARMS
    rows = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    plane = x[..., :2] @ torch.tensor(rows, dtype=torch.float64).to(x).mT
    return torch.cat([plane, x[..., 2:]], dim=-1)


def half(g: int, x: Tensor) -> Tensor:
    """Points (batch, 2) turned by g half circles."""
    return -x if g % 2 else x


THIRDS = Equivariance(Cyclic(ARMS), turn, turn, name="thirds")
HALVES = Equivariance(Cyclic(2), half, half, name="halves")  # wrong: arms come to lie between arms


def pinwheel(count: int, rng: torch.Generator) -> Tensor:
    """Points on three bent arms, (count, 2): the same distribution after a third of a turn."""
    arm = torch.randint(ARMS, (count,), generator=rng)
    along = 0.4 + 1.4 * torch.rand(count, generator=rng)
    across = 0.08 * torch.randn(count, generator=rng)
    angle = 2 * math.pi * arm / ARMS + 0.8 * along + across / along
    return along[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def noised(points: Tensor, times: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every point `times` over with noise of random size s.

    Returns:
        inputs (x, y, log s) and targets (clean x, clean y, log s), both (times * count, 3).
    """
    clean = points.repeat(times, 1)
    low, high = math.log(FAINTEST), math.log(LOUDEST)
    size = low + (high - low) * torch.rand(len(clean), 1, generator=rng)
    noise = size.exp() * torch.randn(clean.shape, generator=rng)
    return torch.cat([clean + noise, size], dim=1), torch.cat([clean, size], dim=1)


def load() -> Data:
    """36 points to learn from, each noised 60 times, and 400 to judge by, noised 4 times."""
    rng = torch.Generator().manual_seed(0)
    train, test = pinwheel(POINTS, rng), pinwheel(400, rng)
    return Data(train=noised(train, NOISINGS, rng), test=noised(test, 4, rng))


class Denoiser(nn.Module):
    """(x, y, log s) -> the mean of the points that it can have been, (batch, 2).

    D = x / (1 + s^2) + s / sqrt(1 + s^2) F(x / sqrt(1 + s^2), log s): F, a perceptron, sees and
    gives numbers of size one whatever the noise.

    Reference: Karras et al. 2022, arXiv 2206.00364, table 1, for data of variance 1.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        point, log = x[:, :2], x[:, 2:]
        square = torch.exp(2 * log)
        inside = torch.cat([point / (1 + square).sqrt(), log], dim=1)
        guess: Tensor = point / (1 + square) + (square / (1 + square)).sqrt() * self.layers(inside)
        return guess


@torch.no_grad()
def points(denoiser: nn.Module, count: int = 512, seed: int = 0) -> Tensor:
    """Points made out of noise, (count, 2), by dx/ds = (x - D(x, s)) / s from loud to faint.

    Noise looks the same from all sides and the way is the same function for all: if the denoiser
    commutes with turns, so does the way, and the points are distributed alike on all arms.
    """
    sizes = torch.logspace(math.log10(LOUDEST), math.log10(FAINTEST), LEVELS).tolist()
    x = LOUDEST * torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))

    def slope(x: Tensor, size: float) -> Tensor:
        told = torch.full((count, 1), math.log(size))
        gone: Tensor = (x - denoiser(torch.cat([x, told], dim=1))) / size
        return gone

    for now, then in pairwise(sizes):  # Heun's method
        first = slope(x, now)
        second = slope(x + (then - now) * first, then)
        x = x + (then - now) * (first + second) / 2
    return x


def made(denoiser: nn.Module) -> dict[str, Measured]:
    """How far the points that it makes are from themselves turned, and from the pinwheel's own."""
    found = points(denoiser)
    turned = data_asymmetry(found, None, THIRDS)
    own = Measured(value=turned.coefficient, floor=turned.floor, verdict=turned.verdict)
    true = pinwheel(len(found), torch.Generator().manual_seed(2))
    return {
        "Energy distance of generated points from the same turned by thirds": own,
        "Energy distance of generated points from true ones": energy_distance(found, true),
    }


def drawn(denoisers: Mapping[str, nn.Module]) -> list[Panel]:
    """The points to learn from, and those that each denoiser makes, side by side."""
    clouds = {"to learn from": pinwheel(POINTS, torch.Generator().manual_seed(0))}
    clouds |= {entry: points(network.eval(), 256) for entry, network in denoisers.items()}
    data: list[Any] = []
    for (name, cloud), colour in zip(clouds.items(), (GREY, *PALETTE), strict=False):
        x, y = (plain(column.double().numpy()) for column in cloud.T)
        marker = {"color": colour, "size": 4}
        data.append({"type": "scatter", "mode": "markers", "x": x, "y": y, "marker": marker})
        data[-1] |= {"name": name, "meta": name, "line": {"color": colour}}
    side: dict[str, Any] = {"range": [-2.6, 2.6], "nticks": 4, "zeroline": False}
    layout = {
        "xaxis": side | {"title": {"text": "x"}},
        "yaxis": side | {"title": {"text": "y"}},
        "meta": {"multiples": [[name, [i]] for i, name in enumerate(clouds)]},
        "hovermode": "closest",
    }
    keys = tuple(
        Key(label=d["name"], colour=d["line"]["color"], traces=(i,), value=" ")
        for i, d in enumerate(data)
    )
    figure = {"data": data, "layout": layout}
    reading = "256 points each, made from the same noise; all figures have the same axes."
    title = "Points made out of noise"
    return [Panel(slug="points", title=title, reading=reading, figure=figure, keys=keys)]


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean square of what is left of the noise, (1 + s^2) / s^2 times: every s counts alike."""
    square = torch.exp(2 * targets[:, 2:])
    return ((outputs - targets[:, :2]).square() * (1 + square) / square).mean()


def denoising_error(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Root mean square of what is left, weighted as in the loss; and its standard error."""
    square = torch.exp(2 * targets[:, 2:].double())
    left = ((outputs - targets[:, :2]).double().square() * (1 + square) / square).mean(1)
    size = math.sqrt(float(left.mean()))
    return size, float(left.std()) / math.sqrt(len(left)) / (2 * size)


def laws(data: Data) -> list[PhysicalLaw]:
    """The data themselves: 512 fresh points, and whether they look the same after a move."""
    fresh = pinwheel(512, torch.Generator().manual_seed(1))
    texts = {
        THIRDS: "The pinwheel looks the same after a third of a turn",
        HALVES: "After half a turn it does not: its arms lie where gaps were",
    }
    return [
        PhysicalLaw(text=text, result=data_asymmetry(fresh, None, claim), control=claim is HALVES)
        for claim, text in texts.items()
    ]


DEMO = Demo(
    name="denoiser",
    title="denoisers that make points of a pinwheel out of noise, from 36 points",
    load=load,
    entries={
        "plain": Entrant(network=Denoiser),
        "augmented": Entrant(network=Denoiser, augment=THIRDS),
        "averaged": Entrant(network=lambda: averaged(Denoiser(), THIRDS)),
    },
    loss=loss,
    score=Standing(name="denoising error", of=denoising_error),
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    steps=1000,
    batch=128,
    anneal=True,
    watched=256,
    laws=laws,
    made=made,
    drawn=drawn,
    contest=Contest(enforced=("averaged",), every=(4, 2, 1), steps=600, copies=NOISINGS),
)
