"""Few samples of the demos, where a symmetry pays most: what `eqtoolbox suggest` is shown on."""

import torch
from torch import Tensor, nn

from eqtoolbox.demos.digits import load_digits
from eqtoolbox.demos.robot import PlainArm, torques
from eqtoolbox.symmetry.actions.action import quarter_turn


def turned_digits(count: int = 100) -> tuple[nn.Module, Tensor, Tensor]:
    """A perceptron, digits each turned by a random number of quarter turns, and their labels."""
    images, labels = load_digits().train
    turns = torch.randint(4, (count,), generator=torch.Generator().manual_seed(0))
    turned = [quarter_turn(int(k), x) for k, x in zip(turns, images, strict=False)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
            nn.Linear(64, 10),
        )  # fmt: skip
    return model, torch.stack(turned), labels[:count]


def robot_states(count: int = 256) -> tuple[nn.Module, Tensor, Tensor]:
    """A perceptron, random states of the two-arm robot, and the torques that they need."""
    states = torch.randn(count, 12, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PlainArm()
    return model, states, torques(states)
