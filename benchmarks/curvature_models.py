"""Six small training problems with realistic spectra: MLP, BatchNorm ResNet, GPT, two sizes each.

Every one is trained by SGD for a while from a fixed seed, on data that every installation has:
scikit-learn's digits and the text of Python's own manual. Normalisation keeps no running
statistics, so that a tool that switches a model to evaluation mode still sees the same function.
"""

import pydoc_data.topics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call

Batch = tuple[Tensor, Tensor]
NAMES = ("mlp-small", "mlp", "resnet-small", "resnet", "gpt-small", "gpt")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A trained model, its criterion and the batch whose loss is studied."""

    name: str
    model: nn.Module
    criterion: nn.Module
    batch: Batch
    stream: Iterator[Batch]  # further training batches
    lr: float

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def params(self) -> dict[str, Tensor]:
        """Parameters by name."""
        return dict(self.model.named_parameters())

    def loss(self, params: dict[str, Tensor]) -> Tensor:
        """Loss on the batch as a pure function of the parameters."""
        return self.criterion(functional_call(self.model, params, self.batch[0]), self.batch[1])

    def loss_at(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss as most libraries want it."""
        return self.criterion(model(batch[0]), batch[1])

    def gradient(self) -> tuple[Tensor, ...]:
        """One plain gradient: the unit of cost."""
        return torch.autograd.grad(
            self.loss_at(self.model, self.batch), list(self.model.parameters())
        )

    def train(self, steps: int, *, lr: float | None = None) -> None:
        """Plain SGD, at the problem's own rate by default."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=lr or self.lr)
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss_at(self.model, next(self.stream)).backward()
            optimizer.step()
        optimizer.zero_grad()


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, statistics: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs, track_running_stats=statistics)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, track_running_stats=statistics)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet(width: int, *, statistics: bool = False) -> nn.Module:
    """ResNet-8 for 3x32x32 images."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width, track_running_stats=statistics),
        nn.ReLU(),
        Block(width, width, 1, statistics),
        Block(width, 2 * width, 2, statistics),
        Block(2 * width, 4 * width, 2, statistics),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


class Attention(nn.Module):
    """Causal self-attention through scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.inputs(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(y.transpose(1, 2).reshape(b, t, d))


class Layer(nn.Module):
    """A transformer layer with normalisation first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A language model of bytes; logits come out as (batch, vocabulary, time)."""

    def __init__(self, width: int, layers: int, heads: int, context: int, vocabulary: int = 256):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.layers = nn.Sequential(*[Layer(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.norm(self.layers(x))).transpose(1, 2)


def digits(size: int, channels: int) -> Batch:
    """Digit images (1797, channels, size, size) of mean 0 and variance 1, and labels."""
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None]
    images = F.interpolate(
        (images - images.mean()) / images.std(), size=(size, size), mode="bilinear"
    )
    return images.repeat(1, channels, 1, 1), torch.tensor(load_digits().target)


def text() -> Tensor:
    """The bytes of the topics in Python's manual, (465 000,)."""
    whole = "".join(pydoc_data.topics.topics.values())
    return torch.tensor(list(whole.encode()), dtype=torch.long)


def problem(name: str, *, steps: int | None = None) -> Problem:
    """The problem of that name, trained for `steps` steps (its own number if None)."""
    torch.manual_seed(0)
    if name.startswith("mlp"):
        side, width = (28, 512) if name == "mlp" else (8, 128)
        layers = [nn.Flatten(), nn.Linear(side**2, width), nn.Tanh(), nn.Linear(width, width)]
        model = nn.Sequential(*layers, nn.Tanh(), nn.Linear(width, 10))
        return _trained(name, model, _images(digits(side, 1), 256), 0.1, 100, steps)
    if name.startswith("resnet"):
        width, batch = (48, 16) if name == "resnet" else (16, 32)
        model = resnet(width)
        return _trained(name, model, _images(digits(32, 3), batch), 0.1, 80, steps)
    width, layers, heads = (128, 4, 4) if name == "gpt" else (32, 2, 2)
    model = GPT(width, layers, heads, 64)
    return _trained(name, model, _windows(text(), 8, 64), 0.2, 200, steps)


def _trained(
    name: str, model: nn.Module, draw: Callable[[], Batch], lr: float, steps: int, asked: int | None
) -> Problem:
    def stream() -> Iterator[Batch]:
        while True:
            yield draw()

    made = Problem(
        name=name,
        model=model,
        criterion=nn.CrossEntropyLoss(),
        batch=draw(),
        stream=stream(),
        lr=lr,
    )
    made.train(steps if asked is None else asked)
    return made


def _images(data: Batch, size: int) -> Callable[[], Batch]:
    generator = torch.Generator().manual_seed(0)

    def draw() -> Batch:
        chosen = torch.randint(len(data[0]), (size,), generator=generator)
        return data[0][chosen], data[1][chosen]

    return draw


def _windows(tokens: Tensor, size: int, context: int) -> Callable[[], Batch]:
    generator = torch.Generator().manual_seed(0)

    def draw() -> Batch:
        starts = torch.randint(len(tokens) - context - 1, (size, 1), generator=generator)
        windows = tokens[starts + torch.arange(context + 1)]
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    return draw
