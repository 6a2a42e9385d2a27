"""A planar two-arm robot: inverse dynamics by a plain network and by such that keep its mirror."""

import torch
from torch import Tensor, nn

from eqtoolbox.demos.demo import Contest, Data, Demo, Entrant, PhysicalLaw, Standing
from eqtoolbox.demos.scores import relative_error
from eqtoolbox.enforce.averaged import averaged
from eqtoolbox.enforce.tied import tied
from eqtoolbox.symmetry.actions.permuting import Signed
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error

# angles, velocities and accelerations of (left shoulder, left elbow, right shoulder, right elbow);
# the mirror exchanges the arms and turns every angle round
_ARMS = (2, 3, 0, 1)
STATE = Signed(tuple(4 * block + i for block in range(3) for i in _ARMS), (-1,) * 12)
TORQUE = Signed(_ARMS, (-1,) * 4)
MIRROR = Equivariance(STATE.group, STATE, TORQUE, name="mirror")


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


class PlainArm(nn.Module):
    """A three-layer perceptron that knows nothing of mirrors."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(12, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 4)
        )

    def forward(self, state: Tensor) -> Tensor:
        out: Tensor = self.layers(state)
        return out


def load() -> Data:
    """256 random states to learn from, 512 to judge by, with their torques."""
    rng = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 12, generator=rng) for n in (256, 512))
    return Data(train=(train, torques(train)), test=(test, torques(test)))


def laws(data: Data) -> list[PhysicalLaw]:
    """The robot itself, in float64."""
    states = data.test[0].double()
    text = "The robot seen in a mirror obeys its own equations"
    return [PhysicalLaw(text=text, result=equivariance_error(torques, states, MIRROR))]


def tied_net() -> nn.Module:
    """A wider perceptron with tied weights, as many of them free as the plain one has."""
    return tied(PlainArm(92), MIRROR, torch.randn(4, 12))


DEMO = Demo(
    name="robot",
    title="networks to give the torques of a two-arm robot that is its own mirror image",
    load=load,
    entries={
        "plain": Entrant(network=PlainArm),
        "augmented": Entrant(network=PlainArm, augment=MIRROR),
        "averaged": Entrant(network=lambda: averaged(PlainArm(), MIRROR)),
        "tied": Entrant(network=tied_net),
    },
    loss=nn.functional.mse_loss,
    score=Standing(name="torque error", of=relative_error),
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    steps=2000,
    batch=64,
    anneal=True,
    watched=128,
    laws=laws,
    contest=Contest(enforced=("averaged", "tied"), steps=1000),
)
