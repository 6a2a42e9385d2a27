"""Losses: criteria called on the model's output, and functions that call the model themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.neutrality.random_loops.tensors import collected

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss; `make(model)` gives `f(model, batch)`, or a module `f(output, target)`."""

    make: Callable[[nn.Module], Any]
    criterion: bool = False
    remembers: bool = False
    draws: bool = False  # from the global random streams
    shared: bool = False  # its state belongs to the process
    copies: bool = False  # deep-copies the model
    refused: str = ""  # what a monitor must name when it refuses to evaluate this


LOSSES: dict[str, Loss] = {}


def loss(name: str, **known: Any) -> Callable[[Any], Any]:
    """Enter a class, or a function of the model, into the catalogue."""

    def enter(make: Any) -> Any:
        assert name not in LOSSES, name
        LOSSES[name] = Loss(make=make, **known)
        return make

    return enter


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


loss("cross entropy", criterion=True)(lambda model: nn.CrossEntropyLoss())
loss("smoothed", criterion=True)(lambda model: nn.CrossEntropyLoss(label_smoothing=0.1))


@loss("criterion of one's own", criterion=True)
class Focal(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        lost = F.cross_entropy(output, target, reduction="none")
        return ((1 - (-lost).exp()) ** 2 * lost).mean()


@loss("criterion with a buffer", criterion=True)
class Weighted(nn.Module):
    """Classes weighted by a running frequency in a buffer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.ones(3))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            self.frequency.mul_(0.9).add_(torch.bincount(target, minlength=3), alpha=0.1)
        return F.cross_entropy(output.float(), target, 1 / (1 + self.frequency))


loss("function")(lambda model: cross_entropy)


@loss("two forwards")
class Consistent:
    def __init__(self, model: nn.Module) -> None:
        pass

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        one, two = model(batch[0]), model(batch[0])
        return F.cross_entropy(one, batch[1]) + F.mse_loss(one, two)


@loss("noise on the inputs", draws=True)
class Noisy(Consistent):
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, (batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]))


@loss("penalty on parameters")
class Decayed(Consistent):
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        squares = sum(p.square().sum() for p in model.parameters() if p.requires_grad)
        return cross_entropy(model, batch) + 1e-3 * squares


@loss("penalty on gradients")
class Penalised(Consistent):
    """Differentiates inside of the loss."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        output = model(batch[0])
        value = F.cross_entropy(output, batch[1])
        slope = torch.autograd.grad(value, output, create_graph=True)[0]
        return value + slope.square().sum()


@loss("losses of layers, cleared by the loss")
class Collected(Consistent):
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) + 0.1 * collected(model)


@loss("teacher that stands still", copies=True)
class Distilled:
    def __init__(self, model: nn.Module) -> None:
        self.teacher = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.teacher.append(nn.Linear(6, 3))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        output = model(batch[0])
        with torch.no_grad():
            taught = self.teacher(batch[0].float()).softmax(-1)
        return F.cross_entropy(output, batch[1]) + F.cross_entropy(output.float(), taught)


@loss("mapping with the loss")
class Mapped(Consistent):
    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        return {"loss": cross_entropy(model, batch), "name": "mapped"}
