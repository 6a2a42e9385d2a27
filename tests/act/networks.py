"""The networks that acts are tested on, each with a batch, after a few steps of training."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.weights import ContinuousSymmetry, ParameterSymmetry
from tests.symmetry.architectures import Experts, Patches, Rotary, conv, sequential

Batch = tuple[Tensor, Tensor]


class Residual(nn.Module):
    """Two convolutions with batch normalisation around a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.b0 = conv(3, 5, 3, 1, 1, bias=False), nn.BatchNorm2d(5)
        self.c1, self.b1 = conv(5, 6, 3, 1, 1), nn.BatchNorm2d(6)
        self.c2, self.b2 = conv(6, 5, 3, 1, 1, bias=False), nn.BatchNorm2d(5)
        self.h = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b0(self.stem(x)))
        return self.h(F.relu(x + self.b2(self.c2(F.relu(self.b1(self.c1(x)))))).mean((2, 3)))


class Depthwise(nn.Module):
    """Depthwise-separable convolutions with a layer norm and layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.d = conv(3, 4, 2, 2), conv(4, 4, 3, 1, 1, groups=4)
        self.n, self.a, self.b = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)
        self.scale, self.h = nn.Parameter(torch.rand(4) + 0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.n(self.d(x).permute(0, 2, 3, 1))
        y = self.scale * self.b(F.relu(self.a(y)))
        return self.h((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


def mlp() -> nn.Module:
    return sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


def normalised() -> nn.Module:
    return sequential(
        conv(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        conv(4, 5, 3, 1, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(),
        nn.Linear(80, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "batch norm": normalised,
    "residual": Residual,
    "attention": Patches,
    "llama": Rotary,
    "experts": Experts,
    "depthwise": Depthwise,
}
_TOKENS, _ROWS = ("llama",), ("mlp", "experts")


def batch(name: str, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(3)
    if name in _TOKENS:
        tokens = torch.randint(20, (8, 6), generator=generator)
        return tokens, tokens.roll(-1, 1)
    shape = (24, 6) if name in _ROWS else (12, 3, 8, 8)
    return torch.randn(shape, generator=generator).to(dtype), torch.arange(shape[0]) % 3


def loss_of(model: nn.Module, given: Any) -> Tensor:
    return F.cross_entropy(model(given[0]).flatten(0, -2), given[1].flatten())


def network(name: str, dtype: torch.dtype = torch.float32, steps: int = 4) -> nn.Module:
    """After a few steps, so that statistics and gains are no longer those of the beginning."""
    torch.manual_seed(0)
    model = NETWORKS[name]().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    train(model, optimizer, batch(name, dtype), steps)
    return model


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, given: Batch, steps: int
) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = loss_of(model, given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def scattered(
    model: nn.Module, symmetries: Sequence[ParameterSymmetry], sigma: float, seed: int = 0
) -> None:
    """Move a model along its orbit, far: by elements of size sigma in float64."""
    generator = torch.Generator().manual_seed(seed)
    own = dict(model.named_parameters())
    now = {n: p.detach().double() for n, p in own.items()}
    for s in symmetries:
        if isinstance(s, ContinuousSymmetry):
            c = torch.randn(s.dimension, generator=generator, dtype=torch.float64)
            size = getattr(s, "size", 1)  # of matrices, whose norms grow with it
            now.update(s.transform(now, sigma * c / size**0.5))
    with torch.no_grad():
        for n, p in own.items():
            p.copy_(now[n])
