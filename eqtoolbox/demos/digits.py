"""Handwritten digits: a small convolutional network on scikit-learn's 1,797 images of 8 x 8."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.demos.demo import Data, Demo, Entrant, batches
from eqtoolbox.demos.scores import ACCURACY


def load_digits() -> Data:
    """Images (n, 1, 8, 8) in [0, 1] and labels of the data set that scikit-learn ships.

    Raises:
        ImportError: scikit-learn is missing.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ImportError('the digits need scikit-learn: pip install "eqtoolbox[demo]"')
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"  # no second of import
    rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    images, labels = rows[:, :-1].reshape(-1, 1, 8, 8) / 16, rows[:, -1].long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    return Data(train=(images[train], labels[train]), test=(images[test], labels[test]))


class DigitNet(nn.Module):
    """Two convolutions, the first batch-normalised, and a two-layer head: 14 thousand weights."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(8 * width, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.conv1(x))))
        x = self.pool(F.relu(self.conv2(x)))
        logits: Tensor = self.head(F.relu(self.hidden(x.flatten(1))))
        return logits


def trained(epochs: int = 3) -> tuple[nn.Module, Tensor]:
    """A `DigitNet` after a few epochs without the monitor, and test images: for the audit."""
    digits = load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in batches(digits.train, 64, 22 * epochs, seed=0):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval(), digits.test[0][:64]


DEMO = Demo(
    name="digits",
    title="a small convolutional network on 1,437 handwritten digits",
    load=load_digits,
    entries={"plain": Entrant(network=DigitNet)},
    loss=F.cross_entropy,
    score=ACCURACY,
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, weight_decay=5e-4),
    steps=400,
    batch=128,
)
