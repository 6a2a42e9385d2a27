"""Burgers' equation: periodic waves that steepen, and surrogates that know Galileo or do not."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from eqtoolbox.demos.demo import Contest, Data, Demo, Entrant, PhysicalLaw, Standing
from eqtoolbox.demos.scores import relative_error
from eqtoolbox.symmetry.actions.boosts import Boost
from eqtoolbox.symmetry.actions.permuting import Roll
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.group import Cyclic
from eqtoolbox.symmetry.groups.unbounded import Translations

SIZE, TIME, VISCOSITY = 64, 0.5, 0.1  # grid cells of 2 pi, time, length^2 / time
STEP = 2 * math.pi / SIZE / TIME  # the velocity that moves a wave by one cell
BOOSTS = Equivariance(
    Translations((8,)), Boost(STEP), Boost(STEP, cells=1), name="boosts"
)  # u + c then, u + c moved by c t now
STANDING = Equivariance(  # wrong: boosted waves that do not move on
    Translations((8,)), Boost(STEP), Boost(STEP), name="boosts-without-motion"
)
SHIFTS = Equivariance(Cyclic(SIZE), Roll(), Roll(), name="shifts")


def evolve(u: Tensor, time: float = TIME, steps: int = 20) -> Tensor:
    """du/dt = -u du/dx + nu d2u/dx2 on the circle, (batch, n) -> (batch, n), in float64.

    Spectral in space with the 2/3 rule, RK4 in time; viscosity and what the mean wind carries are
    exact (integrating factor), so that a boost costs no accuracy.
    """
    n = u.shape[-1]
    k = torch.fft.rfftfreq(n, 1 / n, dtype=torch.float64)
    kept, h = k < n / 3, time / steps
    wind = u.double().mean(-1, keepdim=True)
    half = torch.exp((-VISCOSITY * k**2 - 1j * k * wind) * h / 2)

    def drive(s: Tensor) -> Tensor:
        square = torch.fft.irfft(s, n=n).square()
        push: Tensor = -0.5j * k * torch.fft.rfft(square) * kept
        return push

    s = torch.fft.rfft(u.double() - wind) * kept
    for _ in range(steps):
        a = drive(s)
        b = drive(half * (s + h / 2 * a))
        c = drive(half * s + h / 2 * b)
        d = drive(half * (half * s + h * c))
        s = half * (half * (s + h / 6 * a) + h / 3 * (b + c)) + h / 6 * d
    later: Tensor = torch.fft.irfft(s, n=n) + wind
    return later


def waves(count: int, rng: torch.Generator, highest: int = 3) -> Tensor:
    """Random waves of mean zero and unit mean square, (count, 64), float64."""
    x = 2 * math.pi * torch.arange(SIZE, dtype=torch.float64) / SIZE
    k = torch.arange(1, highest + 1, dtype=torch.float64)[:, None]
    size = torch.randn(count, 2, highest, generator=rng, dtype=torch.float64)
    u = size[:, 0] @ torch.cos(k * x) + size[:, 1] @ torch.sin(k * x)
    return u / u.square().mean(-1, keepdim=True).sqrt()


class BurgersSurrogate(nn.Module):
    """Three circular convolutions that add the change of a wave (batch, 64) to it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for n, m in pairwise((1, width, width, 1)):
            self.layers.append(nn.Conv1d(n, m, 9, padding=4, padding_mode="circular"))
            self.layers.append(nn.GELU() if m > 1 else nn.Identity())

    def forward(self, u: Tensor) -> Tensor:
        later: Tensor = u + self.layers(u[:, None]).squeeze(1)
        return later


class Moving(BurgersSurrogate):
    """The same in the frame of the mean wind, carried back by it: exact under every boost."""

    def forward(self, u: Tensor) -> Tensor:
        wind = u.mean(-1, keepdim=True)
        spectrum = torch.fft.rfft(super().forward(u - wind))[..., :-1]  # the last has no phase
        k = torch.arange(spectrum.shape[-1]).to(u)
        turned = spectrum * torch.exp(-1j * k * wind * TIME)
        carried: Tensor = torch.fft.irfft(turned, n=u.shape[-1]) + wind
        return carried


def load() -> Data:
    """128 waves without wind to learn from; 256 in random winds to judge by."""
    rng = torch.Generator().manual_seed(0)
    train, still = waves(128, rng), waves(256, rng)
    winds = BOOSTS.group.sample(len(still), rng)
    test = torch.stack([BOOSTS.input_action(g, u) for g, u in zip(winds, still, strict=True)])
    pairs = [(u.float(), evolve(u).float()) for u in (train, test)]
    return Data(train=pairs[0], test=pairs[1])


def laws(data: Data) -> list[PhysicalLaw]:
    """The solver itself, to the rounding of the data in float32."""
    u = data.test[0][:32]
    claims = {
        BOOSTS: "The solver obeys Galileo: in a wind, waves do the same and are carried along",
        STANDING: "A wind that carries nothing is no symmetry of it",
        SHIFTS: "The solver commutes with shifts",
    }
    return [
        PhysicalLaw(
            text=text,
            result=equivariance_error(lambda u: evolve(u).to(u), u, claim),
            control=claim is STANDING,
        )
        for claim, text in claims.items()
    ]


DEMO = Demo(
    name="burgers",
    title="surrogates of Burgers' equation on 128 waves without wind, judged in the wind",
    load=load,
    entries={
        "plain": Entrant(network=BurgersSurrogate),
        "augmented": Entrant(network=BurgersSurrogate, augment=BOOSTS),
        "moving": Entrant(network=Moving),
    },
    loss=nn.functional.mse_loss,
    score=Standing(name="wave error", of=relative_error),
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
    steps=1000,
    batch=32,
    anneal=True,
    watched=64,
    laws=laws,
    contest=Contest(enforced=("moving",), every=(32, 8, 1), steps=400),
)
