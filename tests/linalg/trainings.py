"""Small trainings whose dense Hessians are known at every step: MLP, ResNet and GPT."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

Batch = tuple[Tensor, Tensor]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "adam": torch.optim.Adam,
}
RATES = {  # at which the sharpness moves by about 0.1, 1, 5 and 30 % a step
    "sgd": (0.02, 0.1, 0.4, 3.0),
    "momentum": (0.005, 0.03, 0.1, 0.8),
    "adam": (3e-4, 2e-3, 0.01, 0.1),
}


class Conv(nn.Conv2d):
    """A 3x3 convolution whose derivatives are fast under vmap."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        x = F.pad(x, (1, 1, 1, 1))
        near = [x[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
        patches = torch.stack(near, 2).flatten(1, 2).flatten(2)
        return (self.weight.flatten(1) @ patches).unflatten(-1, (h, w))


class ResNet(nn.Module):
    """One residual block with batch normalisation by the batch's statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third = Conv(1, width), Conv(width, width), Conv(width, width)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width, track_running_stats=False) for _ in range(3)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = self.norms
        h = F.relu(one(self.first(x)))
        h = F.relu(h + three(self.third(F.relu(two(self.second(h))))))
        return self.head(h.mean((2, 3)))


class GPT(nn.Module):
    """One layer of causal attention and a perceptron over tokens."""

    def __init__(self, width: int, tokens: int, length: int) -> None:
        super().__init__()
        self.token = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.inputs, self.outputs = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.register_buffer("later", torch.ones(length, length).triu(1).bool())

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = self.norms
        h = self.token(x) + self.position
        q, k, v = self.inputs(one(h)).chunk(3, -1)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(self.later, -1e9)
        h = h + self.outputs(scores.softmax(-1) @ v)
        h = h + self.down(F.gelu(self.up(two(h))))
        return self.head(three(h)).mT


def problem(kind: str, width: int, seed: int) -> tuple[nn.Module, Batch, torch.Generator]:
    """A model, 256 samples with something to learn in them, and what goes on drawing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, batch = PROBLEMS[kind](width, seed)
        rng = torch.Generator()
        rng.set_state(torch.get_rng_state())
    return model, batch, rng


def _mlp(width: int, seed: int) -> tuple[nn.Module, Batch]:
    kinds: tuple[Any, ...] = (nn.GELU, nn.Tanh, nn.ReLU)
    act, x = kinds[seed % 3], torch.randn(256, 5)
    layers = (nn.Linear(5, 2 * width), act(), nn.Linear(2 * width, width), act())
    return nn.Sequential(*layers, nn.Linear(width, 3)), (x, (x[:, :3] * x[:, 2:]).argmax(1))


def _resnet(width: int, seed: int) -> tuple[nn.Module, Batch]:
    x = torch.randn(256, 1, 4, 4)
    sides = [x[:, 0, :2].mean((1, 2)), x[:, 0, 2:].mean((1, 2)), x[:, 0, :, :2].std((1, 2)) - 1]
    return ResNet(width // 3), (x, torch.stack(sides, 1).argmax(1))


def _gpt(width: int, seed: int) -> tuple[nn.Module, Batch]:
    words = torch.randint(0, 5, (256, 6))
    words[:, 2::2] = (words[:, 1:-1:2] + words[:, :-2:2]) % 5
    return GPT(width - 2, 5, 5), (words[:, :-1], words[:, 1:])


PROBLEMS = {"mlp": _mlp, "resnet": _resnet, "gpt": _gpt}
MODELS = tuple(PROBLEMS)


def hessians(
    kind: str,
    optimizer: str,
    lr: float,
    *,
    steps: int,
    width: int = 6,
    seed: int = 0,
    fresh: bool = False,
) -> Iterator[Tensor]:
    """The dense Hessian (n, n) in float64 before every step of a training, warmed up in 8 steps.

    Of 32 samples that stay the same, or of the step's own with `fresh`.
    """
    model, (x, y), rng = problem(kind, width, seed)
    names = [name for name, _ in model.named_parameters()]
    opt = OPTIMIZERS[optimizer](model.parameters(), lr=lr)
    for step in range(steps):
        for group in opt.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 8)
        chosen = torch.randint(0, len(x), (32,), generator=rng)
        inputs, targets = (x[chosen], y[chosen]) if fresh else (x[:32], y[:32])
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        shapes = [p.shape for p in model.parameters()]
        sizes = [shape.numel() for shape in shapes]

        def loss(flat: Tensor) -> Tensor:
            parts = zip(names, flat.split(sizes), shapes, strict=True)  # noqa: B023
            params = {name: part.view(shape) for name, part, shape in parts}
            return F.cross_entropy(functional_call(model, params, (inputs,)), targets)  # noqa: B023

        theta = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
        columns = vmap(lambda v: jvp(grad(loss), (theta,), (v,))[1])  # noqa: B023
        dense = columns(torch.eye(len(theta), dtype=torch.float64))
        yield (dense + dense.T) / 2
        opt.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        opt.step()
