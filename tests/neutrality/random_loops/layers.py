"""Layers: pieces whose only state is parameters, buffers, flags and the global random streams."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from tests.neutrality.random_loops.piece import WIDTH, piece


def _linear(**options: Any) -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH, **options)


def _block() -> nn.Sequential:
    return nn.Sequential(_linear(), nn.ReLU(), _linear())


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "linear": _linear,
    "linear without bias": lambda: _linear(bias=False),
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "prelu": nn.PReLU,
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "group norm": lambda: nn.GroupNorm(2, WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "batch norm, cumulative": lambda: nn.BatchNorm1d(WIDTH, momentum=None),
    "batch norm, batch statistics": lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False),
    "batch norm in evaluation": lambda: nn.BatchNorm1d(WIDTH).eval(),
    "frozen": lambda: _linear().requires_grad_(False),
    "spectral norm": lambda: parametrizations.spectral_norm(_linear()),
    "weight norm": lambda: parametrizations.weight_norm(_linear()),
}
for name, make in PLAIN.items():
    piece(name)(make)
piece("weight norm by hook", copies=False)(lambda: nn.utils.weight_norm(_linear()))
piece("spectral norm by hook", copies=False)(lambda: nn.utils.spectral_norm(_linear()))
piece("pruned", copies=False)(lambda: prune.l1_unstructured(_linear(), "weight", 0.3))
piece("dropout", draws=True)(lambda: nn.Dropout(0.2))
piece("alpha dropout", draws=True)(lambda: nn.AlphaDropout(0.1))


@piece("frozen bias")
def _frozen_bias() -> nn.Module:
    layer = _linear()
    layer.bias.requires_grad_(False)
    return layer


@piece("residual")
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _block()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@piece("dropped residual", draws=True)
class Stochastic(Residual):
    """Stochastic depth."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and torch.rand(1).item() < 0.3 else super().forward(x)


class Checkpointed(nn.Module):
    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(_linear(), nn.Dropout(0.1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@piece("checkpoint, reentrant", draws=True)
class Reentrant(Checkpointed):
    reentrant = True


piece("checkpoint", draws=True)(Checkpointed)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inner = kind(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[:, None].expand(-1, 2, -1))[0][:, -1]


piece("rnn")(lambda: Recurrent(nn.RNN))
piece("gru")(lambda: Recurrent(nn.GRU))
piece("lstm")(lambda: Recurrent(nn.LSTM))


@piece("attention", draws=True)
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None].expand(-1, 2, -1)
        return self.inner(x, x, x, need_weights=False)[0].mean(1)


@piece("tied")
class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _linear(), _linear()
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


@piece("embedding")
class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Embedding(4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner((x.detach().sum(1) > 0).long())


class Running(nn.Module):
    """A running mean in a buffer, and a count in another."""

    def __init__(self, write: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.long), persistent=False)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.count += 1
                self.write(self, (0.9 * self.mean + 0.1 * x.mean()).to(self.mean.dtype))
        return x - self.mean.to(x.dtype)


piece("buffer in place")(lambda: Running(lambda m, new: m.mean.copy_(new)))
piece("buffer rebound")(lambda: Running(lambda m, new: setattr(m, "mean", new)))
piece("buffer by .data")(lambda: Running(lambda m, new: m.mean.data.copy_(new)))
piece("buffer by .data =")(lambda: Running(lambda m, new: setattr(m.mean, "data", new)))
piece("buffer by set_")(lambda: Running(lambda m, new: m.mean.set_(new.clone())))


class Noise(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.05 * self.draw(x))


piece("torch noise", draws=True)(lambda: Noise(torch.randn_like))
piece("numpy noise", draws=True)(lambda: Noise(lambda x: float(np.random.rand())))
piece("python noise", draws=True)(lambda: Noise(lambda x: random.random()))
