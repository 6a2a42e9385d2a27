"""Handwritten digits: a small convolutional network on scikit-learn's 1,797 images of 8 x 8."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.attach import attach
from eqtoolbox.config import Probes, preset_path
from eqtoolbox.sink import Sink

Batch = tuple[Tensor, Tensor]
EXPERIMENT = "experiments/digits"


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Images (n, 1, 8, 8) in [0, 1] and labels, split into training and test part."""

    train: Batch
    test: Batch


def load_digits() -> Digits:
    """The data set that scikit-learn ships.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError('the digits need scikit-learn: pip install "eqtoolbox[demo]"') from error
    data = load()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    return Digits(train=(images[train], labels[train]), test=(images[test], labels[test]))


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


def batches(data: Batch, size: int, steps: int, seed: int) -> Iterator[Batch]:
    """`steps` shuffled batches, epoch after epoch."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = data
    done = 0
    while True:
        for rows in torch.split(torch.randperm(len(labels), generator=generator), size):
            if done == steps:
                return
            if len(rows) == size:
                yield images[rows], labels[rows]
                done += 1


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


def train(
    *,
    steps: int = 400,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    probes: Probes | None = None,
    budget: float | None = None,
    run_dir: str | None = None,
    sinks: tuple[Sink, ...] = (),
    seed: int = 0,
    after_step: Callable[[int, float], None] | None = None,
) -> float:
    """Train `DigitNet` by SGD with the monitor attached; returns the accuracy on the test part.

    Probes are those of configs/experiments/digits.toml unless given.
    """
    probes = preset_path(EXPERIMENT) if probes is None else probes
    torch.manual_seed(seed)
    digits = load_digits()
    model = DigitNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
    with attach(
        model, optimizer, probes=probes, budget=budget, run_dir=run_dir, sinks=sinks, seed=seed
    ) as monitor:

        @monitor.loss
        def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
            images, labels = batch
            return F.cross_entropy(model(images), labels)

        for step, batch in enumerate(batches(digits.train, 128, steps, seed)):
            loss = loss_fn(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            if after_step is not None:
                after_step(step, float(loss.detach()))
    model.eval()
    with torch.no_grad():
        images, labels = digits.test
        return float((model(images).argmax(1) == labels).float().mean())
