"""A flow: a periodic 2-D fluid by a spectral solver, and surrogates of its velocity field."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from eqtoolbox.demos.demo import Contest, Data, Demo, Entrant, PhysicalLaw, Standing
from eqtoolbox.demos.scores import relative_error
from eqtoolbox.enforce.averaged import averaged
from eqtoolbox.symmetry.actions.action import dihedral, roll
from eqtoolbox.symmetry.actions.fields import vector_field
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.group import CyclicTranslation, Dihedral

SIZE, TIME, VISCOSITY = 24, 0.5, 5e-3  # grid cells a side of 2 pi, time, length^2 / time
TURNS = Equivariance(Dihedral(4), vector_field, vector_field, name="turns-and-mirrors")
SHIFTS = Equivariance(CyclicTranslation(SIZE), roll, roll, name="shifts")
SCALARS = Equivariance(Dihedral(4), dihedral, dihedral, name="turns-of-the-grid-alone")


class Fluid:
    """Incompressible Navier-Stokes on the torus [0, 2 pi)^2 in velocity form, without force.

    du/dt = P(u x w) + nu lap u with the vorticity w and the projection P on fields without
    divergence; the product is dealiased by the 2/3 rule, viscosity is exact (integrating factor),
    RK4 in time, all in float64. Components are (right, down) as image indices grow.
    """

    def __init__(self, size: int = SIZE, viscosity: float = VISCOSITY) -> None:
        right = torch.fft.rfftfreq(size, 1 / size, dtype=torch.float64)
        down = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
        self.right, self.down = right.expand(size, -1), down[:, None].expand(-1, len(right))
        self.square = self.right**2 + self.down**2
        self.kept = (self.right < size / 3) & (self.down.abs() < size / 3)
        self.viscosity, self.shape = viscosity, (size, size)

    def evolve(self, u: Tensor, time: float = TIME, steps: int = 10) -> Tensor:
        """The velocity field (batch, 2, size, size) after a time."""
        h = time / steps
        half = torch.exp(-self.viscosity * self.square * h / 2)
        s = torch.fft.rfft2(u.double()) * self.kept
        for _ in range(steps):
            a = self._drive(s)
            b = self._drive(half * (s + h / 2 * a))
            c = self._drive(half * s + h / 2 * b)
            d = self._drive(half * (half * s + h * c))
            s = half * (half * (s + h / 6 * a) + h / 3 * (b + c)) + h / 6 * d
        return self._real(s)

    def random(self, count: int, generator: torch.Generator, waves: int = 4) -> Tensor:
        """Random fields without divergence of wavenumbers up to `waves`, unit mean energy each."""
        noise = torch.randn(count, 2, *self.shape, generator=generator, dtype=torch.float64)
        band = (self.square > 0) & (self.square <= waves**2)
        u = self._real(self._project(torch.fft.rfft2(noise) * band))
        size: Tensor = u.square().sum(1).mean((1, 2)).sqrt()
        return u / size[:, None, None, None]

    def vorticity(self, u: Tensor) -> Tensor:
        """w = d u_down / d right - d u_right / d down, (batch, 2, n, n) -> (batch, n, n)."""
        return self._real(self._curl(torch.fft.rfft2(u.double())))

    def _curl(self, s: Tensor) -> Tensor:
        curl: Tensor = 1j * (self.right * s[:, 1] - self.down * s[:, 0])
        return curl

    def _drive(self, s: Tensor) -> Tensor:
        u, w = self._real(s), self._real(self._curl(s))
        push = torch.stack([u[:, 1] * w, -u[:, 0] * w], dim=1)
        return self._project(torch.fft.rfft2(push) * self.kept)

    def _project(self, s: Tensor) -> Tensor:
        along = (self.right * s[:, 0] + self.down * s[:, 1]) / self.square.clamp(min=1)
        return s - torch.stack([self.right * along, self.down * along], dim=1)

    def _real(self, s: Tensor) -> Tensor:
        x: Tensor = torch.fft.irfft2(s, s=self.shape)
        return x


class FlowSurrogate(nn.Module):
    """Three convolutions that add the change of a velocity field (batch, 2, n, n) to it."""

    def __init__(self, padding: Literal["zeros", "circular"] = "circular", width: int = 16) -> None:
        super().__init__()
        widths = (2, width, width, 2)
        self.layers = nn.Sequential()
        for i, (n, m) in enumerate(pairwise(widths)):
            conv = nn.Conv2d(n, m, 5, padding=2, padding_mode=padding)
            self.layers.append(conv)
            if i < 2:
                self.layers.append(nn.GELU())

    def forward(self, u: Tensor) -> Tensor:
        later: Tensor = u + self.layers(u)
        return later


def load() -> Data:
    """48 flows to learn from and 64 to judge by, each with what the solver makes of it."""
    fluid = Fluid()
    flows = fluid.random(112, torch.Generator().manual_seed(0))
    later = fluid.evolve(flows)
    x, y = flows.float(), later.float()
    return Data(train=(x[:48], y[:48]), test=(x[48:], y[48:]))


def laws(data: Data) -> list[PhysicalLaw]:
    """The solver itself, in float64."""
    fluid, u = Fluid(), data.test[0][:8].double()
    turns = "The solver commutes with turns and mirrors of vector fields"
    left = "With arrows left as they are while the grid turns, it does not"
    return [
        PhysicalLaw(text=turns, result=equivariance_error(fluid.evolve, u, TURNS)),
        PhysicalLaw(text=left, result=equivariance_error(fluid.evolve, u, SCALARS), control=True),
        PhysicalLaw(
            text="The solver commutes with shifts",
            result=equivariance_error(fluid.evolve, u, SHIFTS),
        ),
    ]


DEMO = Demo(
    name="flow",
    title="surrogates of a 2-D Navier-Stokes solver on 48 periodic velocity fields",
    load=load,
    entries={
        "plain": Entrant(network=lambda: FlowSurrogate("zeros")),
        "periodic": Entrant(network=FlowSurrogate),
        "augmented": Entrant(network=FlowSurrogate, augment=TURNS),
        "averaged": Entrant(network=lambda: averaged(FlowSurrogate(), TURNS)),
    },
    loss=nn.functional.mse_loss,
    score=Standing(name="velocity error", of=relative_error),
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    steps=300,
    batch=8,
    anneal=True,
    watched=32,
    laws=laws,
    contest=Contest(plain="periodic", enforced=("averaged",), steps=80),
)
