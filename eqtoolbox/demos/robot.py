"""A planar two-arm robot: inverse dynamics learned by a plain and by a mirror-averaged network."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqtoolbox.attach import attach
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.permuting import Signed

# angles, velocities and accelerations of (left shoulder, left elbow, right shoulder, right elbow);
# the mirror exchanges the arms and turns every angle round
_ARMS = (2, 3, 0, 1)
STATE = Signed(tuple(4 * block + i for block in range(3) for i in _ARMS), (-1,) * 12)
TORQUE = Signed(_ARMS, (-1,) * 4)
MIRROR = Equivariance(STATE.group, STATE, TORQUE, name="mirror")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a network fits the torques and keeps the mirror."""

    error: float  # root mean square torque error over root mean square torque, fresh states
    asymmetry: float  # relative error of the mirror at the last measured step
    verdict: str


def torques(state: Tensor) -> Tensor:
    """Inverse dynamics of two double pendulums of unit links and masses, (batch, 12) -> (batch, 4).

    Lagrange's equations; each arm by itself, so the exchange of the arms and the mirror are exact.
    """
    angle, speed, push = state.reshape(-1, 3, 2, 2).unbind(1)
    (a, b), (u, v), (p, q) = angle.unbind(-1), speed.unbind(-1), push.unbind(-1)
    c, s, g = torch.cos(b), torch.sin(b), 1.0
    shoulder = (3 + 2 * c) * p + (1 + c) * q - s * v * (2 * u + v)
    elbow = (1 + c) * p + q + s * u.square()
    shoulder = shoulder + g * (2 * torch.sin(a) + torch.sin(a + b))
    elbow = elbow + g * torch.sin(a + b)
    return torch.stack([shoulder, elbow], dim=-1).flatten(1)


class Plain(nn.Module):
    """A three-layer perceptron that knows nothing of mirrors."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(12, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 4)
        )

    def forward(self, state: Tensor) -> Tensor:
        out: Tensor = self.layers(state)
        return out


class Mirrored(Plain):
    """The same averaged with its mirror image: (f(x) + R f(S x)) / 2, exactly equivariant."""

    def forward(self, state: Tensor) -> Tensor:
        mirrored: Tensor = TORQUE(1, super().forward(STATE(1, state)))
        averaged: Tensor = (super().forward(state) + mirrored) / 2
        return averaged


def train(model: nn.Module, *, steps: int = 300, seed: int = 0) -> Outcome:
    """Fit the torques on 256 states by Adam with the mirror measured every 50 steps.

    Example:
        >>> train(Mirrored(16), steps=51).verdict
        'holds'
    """
    rng = torch.Generator().manual_seed(seed)
    states = torch.randn(256, 12, generator=rng)
    batch, sink = (states, torques(states)), MemorySink()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    probe = EquivarianceError(symmetries=(MIRROR,), locate=True)
    with attach(
        model, optimizer, probes=[probe], schedule=50, budget=None, sinks=(sink,), seed=seed
    ) as monitor:

        @monitor.loss
        def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss: Tensor = (model(batch[0]) - batch[1]).square().mean()
            return loss

        for _ in range(steps):
            loss = loss_fn(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    fresh = torch.randn(512, 12, generator=rng)
    with torch.no_grad():
        wanted = torques(fresh)
        error = (model(fresh) - wanted).square().mean() / wanted.square().mean()
    last = [r for r in sink.records if r.name == "equivariance/relative_error/mirror"][-1]
    return Outcome(
        error=float(error.sqrt()), asymmetry=last.value, verdict=last.verdict or "unresolved"
    )
