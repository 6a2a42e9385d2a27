"""Teachers: losses that move a second model, train it, or go backward themselves."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.neutrality.random_loops.losses import Batch, cross_entropy
from tests.neutrality.random_loops.stateful_losses import stateful


class Moving:
    """A copy of the model that follows it inside of the loss."""

    def __init__(self, model: nn.Module) -> None:
        self.teacher = copy.deepcopy(model)
        self.teacher.requires_grad_(False)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            self.move([*self.teacher.parameters()], [*model.parameters()])
            taught = self.teacher(batch[0])
        output = model(batch[0])
        return F.cross_entropy(output, batch[1]) + F.mse_loss(output, taught)

    def move(self, old: list[Any], new: list[Any]) -> None:
        raise NotImplementedError


@stateful("teacher in place", copies=True)
class InPlace(Moving):
    def move(self, old: list[Any], new: list[Any]) -> None:
        for p, q in zip(old, new, strict=True):
            p.mul_(0.9).add_(q, alpha=0.1)


@stateful("teacher by foreach", copies=True)
class Foreach(Moving):
    def move(self, old: list[Any], new: list[Any]) -> None:
        torch._foreach_lerp_(old, new, 0.1)


@stateful("teacher by .data =", copies=True)
class Data(Moving):
    def move(self, old: list[Any], new: list[Any]) -> None:
        for p, q in zip(old, new, strict=True):
            p.data = 0.9 * p.data + 0.1 * q.data


@stateful("teacher after a warm-up", copies=True)
class Late(Foreach):
    calls = 0

    def move(self, old: list[Any], new: list[Any]) -> None:
        self.calls += 1
        if self.calls > 2:
            super().move(old, new)


@stateful("teacher by state_dict", copies=True)
class Loaded(Moving):
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        old, new = self.teacher.state_dict(), model.state_dict()
        mixed = {n: (old[n] + new[n].detach()) / 2 for n in old if new[n].is_floating_point()}
        self.teacher.load_state_dict(mixed, strict=False)
        with torch.no_grad():
            taught = self.teacher(batch[0])
        return cross_entropy(model, batch) + F.mse_loss(model(batch[0]), taught)


@stateful("teachers swapped")
class Swapped:
    """Two teachers take turns."""

    def __init__(self, model: nn.Module) -> None:
        self.teacher, self.other = (
            nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3)) for _ in range(2)
        )

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self.teacher, self.other = self.other, self.teacher
        output = model(batch[0])
        taught = self.teacher(batch[0].float()).detach()
        return F.cross_entropy(output, batch[1]) + F.mse_loss(output.float(), taught)


@stateful("teacher that goes backward")
class Backward(Swapped):
    """The loss adds to the gradients of its second model, whose own optimizer steps in it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.optimizer = torch.optim.SGD(self.teacher.parameters(), lr=0.1, momentum=0.9)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        taught = self.teacher(batch[0].float())
        self.optimizer.zero_grad()
        F.cross_entropy(taught, batch[1]).backward()
        self.optimizer.step()
        return cross_entropy(model, batch) + F.mse_loss(model(batch[0]).float(), taught.detach())


@stateful("gradients left behind")
class Accumulating(Swapped):
    """A probe head that only collects gradients, which the next loss reads."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        head = self.teacher[1].weight
        known = 0.0 if head.grad is None else float(head.grad.norm().tanh())
        F.cross_entropy(self.teacher(batch[0].float()), batch[1]).backward()
        return cross_entropy(model, batch) * (1 + 0.1 * known)


@stateful("watched teacher")
class Watched(Swapped):
    """A second model that trains beside the first one, under a monitor of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.optimizer = torch.optim.SGD(self.teacher.parameters(), lr=0.1)
        self.criterion = nn.CrossEntropyLoss()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        output = model(batch[0])
        taught = self.teacher(batch[0].float()).detach()
        return F.cross_entropy(output, batch[1]) + F.mse_loss(output.float(), taught)

    def after(self, batch: Batch) -> None:
        """The loop has stepped; now the teacher does."""
        self.optimizer.zero_grad()
        self.criterion(self.teacher(batch[0].float()), batch[1]).backward()
        self.optimizer.step()
