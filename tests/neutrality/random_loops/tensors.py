"""Memories in tensors and arrays that are no buffers, some with the graph they came from."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.neutrality.random_loops.piece import WIDTH, Memory, memory


class Mean(Memory):
    """A running mean in a plain tensor attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.running = torch.full((WIDTH,), 0.1)

    def remember(self, x: Tensor) -> float:
        self.write(x.mean(0))
        return float(self.running.sum())

    def write(self, new: Tensor) -> None:
        raise NotImplementedError


@memory("tensor in place")
class InPlace(Mean):
    def write(self, new: Tensor) -> None:
        self.running.mul_(0.9).add_(new, alpha=0.1)


@memory("tensor rebound")
class Anew(Mean):
    def write(self, new: Tensor) -> None:
        self.running = 0.9 * self.running + 0.1 * new


@memory("tensor by .data =")
class Data(Mean):
    def write(self, new: Tensor) -> None:
        self.running.data = 0.9 * self.running.data + 0.1 * new


@memory("tensor by out=")
class Out(Mean):
    def write(self, new: Tensor) -> None:
        torch.lerp(self.running, new, 0.1, out=self.running)


@memory("tensor by foreach")
class Foreach(Mean):
    def write(self, new: Tensor) -> None:
        torch._foreach_mul_([self.running], 0.9)
        torch._foreach_add_([self.running], [new], alpha=0.1)


@memory("tensor through a view")
class View(Mean):
    def write(self, new: Tensor) -> None:
        self.running.view(2, -1)[0].add_(new.view(2, -1)[0])


@memory("tensor through NumPy")
class Alias(Mean):
    def write(self, new: Tensor) -> None:
        alias = self.running.numpy()
        alias *= 0.9
        alias += 0.1 * new.numpy()


@memory("tensor that grows")
class Growing(Mean):
    def write(self, new: Tensor) -> None:
        self.running.resize_(len(self.running) + 1)[-1] = float(new.mean()) + 0.1


@memory("NumPy in place")
class Numpy(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.running = np.full(WIDTH, 0.1, dtype=np.float32)

    def remember(self, x: Tensor) -> float:
        self.running *= 0.9
        self.running += 0.1 * x.numpy().mean(0)
        return float(self.running.sum())


@memory("NumPy rebound")
class NumpyAnew(Numpy):
    def remember(self, x: Tensor) -> float:
        self.running = 0.9 * self.running + 0.1 * x.numpy().mean(0)
        return float(self.running.sum())


@memory("parameter through .data")
class MaxNorm(nn.Module):
    """Weights brought to a largest norm before they are used; decayed a little each time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.inner.weight.data.mul_(0.999).clamp_(-0.5, 0.5)
        return self.inner(x)


@memory("activations with their graph", copies=False)
class Kept(nn.Module):
    """The last activations, as losses on features read them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last, self.count = nn.Linear(WIDTH, WIDTH), None, 0

    def forward(self, x: Tensor) -> Any:
        self.last, self.count = self.inner(x), self.count + 1
        return self.last * (1 + 0.01 * self.count)


@memory("losses for the loop", copies=False)
class Balance(nn.Module):
    """A router's own losses, collected in a list that the loop, or the loss, adds and clears."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        gates = self.inner(x).softmax(-1)
        self.losses.append(gates.mean(0).square().sum())
        return x * gates


def collected(model: nn.Module) -> Any:
    """The sum of all such losses, whose lists are cleared."""
    total: Any = 0.0
    for module in model.modules():
        if isinstance(module, Balance):
            total = total + sum(module.losses)
            module.losses.clear()
    return total


@memory("table built when needed", idempotent=True)
class Table(nn.Module):
    """Rotary angles, made at the first call for this shape and type."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[Any, Tensor] = {}
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        key = (len(x), x.dtype)
        if key not in self.tables:
            self.tables[key] = torch.outer(torch.arange(len(x)), torch.linspace(0, 1, WIDTH)).to(x)
        if self.table is None or len(self.table) < len(x):
            self.table = self.tables[key].cos()
        return x * self.table[: len(x)].to(x.dtype) + self.tables[key].sin()


@memory("buffer built when needed", idempotent=True)
class LateBuffer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", x.detach().std(0, correction=0) + 1)
        return x / self.scale.to(x.dtype)


@memory("attribute of a parameter", copies=False)
class Marked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.inner.weight
        weight.calls = getattr(weight, "calls", 0) + 1
        return self.inner(x) * (1 + 0.01 * weight.calls)


@memory("flags set by the forward")
class Flagged(nn.Module):
    """A normalisation whose statistics stand still at every second call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.inner.train(not self.inner.training)
        return self.inner(x)


@memory("forward of the instance", copies=False)
class Exchanged(nn.Module):
    """Its forward was wrapped by somebody who counts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, calls = nn.Linear(WIDTH, WIDTH), 0
        forward = self.inner.forward

        def counted(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return forward(x) * (1 + 0.01 * calls)

        self.inner.forward = counted

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@memory("hidden module")
class Hidden(nn.Module):
    """A normalisation in a list, which the model does not know as its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = [nn.BatchNorm1d(WIDTH, affine=False)]

    def forward(self, x: Tensor) -> Tensor:
        self.inner[0](x.float())
        return x - 0.1 * self.inner[0].running_mean.to(x.dtype)
