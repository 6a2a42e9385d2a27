"""Rotated digits: networks that saw upright digits or turned ones, and three made invariant."""

import torch
import torch.nn.functional as F
from torch import nn

from eqtoolbox.demos.demo import Contest, Data, Demo, Entrant, Maker
from eqtoolbox.demos.digits import DigitNet, load_digits
from eqtoolbox.demos.scores import ACCURACY
from eqtoolbox.enforce.averaged import averaged
from eqtoolbox.enforce.canonicalised import canonicalised
from eqtoolbox.enforce.tied import tied
from eqtoolbox.symmetry.actions.action import quarter_turn, trivial
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.groups.group import Cyclic

RATE = 0.1  # of learning
TURNS = Equivariance(Cyclic(4), quarter_turn, trivial)


def load() -> Data:
    """Upright digits to learn from; to judge by, others turned by a random quarter turn each."""
    digits = load_digits()
    images, labels = digits.test
    turns = torch.randint(4, (len(labels),), generator=torch.Generator().manual_seed(1))
    turned = [quarter_turn(int(k), x) for k, x in zip(turns, images, strict=True)]
    return Data(train=digits.train, test=(torch.stack(turned), labels))


def tied_net() -> nn.Module:
    """A network of twice the width with tied weights, two thirds as many of them free.

    A tied weight is sqrt(4) times the mean of those that are trained; at the rate of the others
    its first steps are too long, and one training in three ends at 70 %.
    """
    return tied(DigitNet(32), TURNS, torch.rand(4, 1, 8, 8))


def descent(rate: float) -> Maker:
    """SGD at a learning rate, with some weight decay."""
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, weight_decay=5e-4)


DEMO = Demo(
    name="rotated",
    title="convolutional networks on upright digits, judged on digits turned by quarter turns",
    load=load,
    entries={
        "plain": Entrant(network=DigitNet),
        "augmented": Entrant(network=DigitNet, augment=TURNS),
        "averaged": Entrant(network=lambda: averaged(DigitNet(), TURNS)),
        "canonicalised": Entrant(network=lambda: canonicalised(DigitNet(), TURNS)),
        "tied": Entrant(network=tied_net, optimizer=descent(RATE / 2)),
    },
    loss=F.cross_entropy,
    score=ACCURACY,
    optimizer=descent(RATE),
    steps=400,
    batch=128,
    watched=128,
    contest=Contest(enforced=("canonicalised", "tied"), steps=150),
)
