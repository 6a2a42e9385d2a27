"""Trains runs with a known disease, and healthy ones, and asks what the findings say of each.

python benchmarks/diseases.py [NAME ...]     a table and benchmarks/results/diseases.json
"""

import copy
import itertools
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn

import eqtoolbox as eq

SEEDS = (0, 1)
PROBES = {"discrete": {"pairs": 0, "laws": False}, "conservation": {}, "curvature": {"k": 1}}
Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Any], Tensor]
CASES: dict[str, tuple[Callable[["Loop"], None], str]] = {}  # of a healthy run the id is empty


def case(id: str = "") -> Callable[[Callable[["Loop"], None]], Callable[["Loop"], None]]:
    """Add a run: of the disease of this id."""

    def add(run: Callable[["Loop"], None]) -> Callable[["Loop"], None]:
        CASES[run.__name__] = run, id
        return run

    return add


class Loop:
    """One training loop, with what can go wrong in it."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        batches: Iterator[Any],
        steps: int,
        *,
        clip: float | None = None,
        zero: bool = True,
        held_out: Any = None,
        scaler: Any = None,
        passes: bool = False,
        **attach: Any,
    ) -> None:
        attach = {"schedule": max(1, steps // 16), "budget": None, "probes": PROBES} | attach
        with eq.attach(model, optimizer, run_dir=self.home, **attach) as monitor:
            watched = monitor.loss(loss)
            for step in range(steps):
                value = watched(model, next(batches))
                if passes and not bool(value.isfinite()):
                    continue
                (scaler.scale(value) if scaler else value).backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                if scaler:
                    scaler.step(optimizer), scaler.update()
                else:
                    optimizer.step()
                if zero:
                    optimizer.zero_grad()
                if held_out is not None and step % 10 == 9:
                    mode = model.training
                    model.eval()
                    with torch.no_grad():
                        watched(model, held_out)
                    model.train(mode)


def table(name: str, scaled: bool = True) -> Batch:
    data = getattr(datasets, f"load_{name}")()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6) if scaled else x
    return x, ((y - y.mean()) / y.std()).float()[:, None] if name == "diabetes" else y.long()


def images() -> Batch:
    data = datasets.load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def letters(size: int = 8, length: int = 16) -> tuple[Iterator[Batch], int]:
    import pydoc_data.topics

    raw = "".join(pydoc_data.topics.topics.values())[50_000:90_000]
    known = {c: i for i, c in enumerate(sorted(set(raw)))}
    tokens = torch.tensor([known[c] for c in raw])

    def batches() -> Iterator[Batch]:
        while True:
            at = torch.randint(len(tokens) - length - 1, (size, 1)) + torch.arange(length + 1)
            yield tokens[at][:, :-1], tokens[at][:, 1:]

    return batches(), len(known)


def batches(x: Tensor, y: Tensor, size: int = 32) -> Iterator[Batch]:
    while True:
        rows = torch.randperm(len(x))[:size]
        yield x[rows], y[rows]


def net(*sizes: int, act: type[nn.Module] = nn.ReLU, norm: Any = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if k < len(sizes) - 2:
            layers += [*([norm(b)] if norm else []), act()]
    return nn.Sequential(*layers)


def conv(norm: bool = True, classes: int = 10) -> nn.Sequential:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]

    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes)]
    return nn.Sequential(*block(1, 16), *block(16, 16), *head)


class Sequence(nn.Module):
    def __init__(self, kind: str, inputs: int, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.core = getattr(nn, kind)(inputs, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0][:, -1])


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class Predicted(nn.Module):
    """An encoder with its predictor, as of SimSiam and BYOL: gives out what both give."""

    def __init__(self, norm: Any = None) -> None:
        super().__init__()
        self.encoder, self.predictor = net(64, 64, 32, norm=norm), net(32, 16, 32, norm=norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.predictor(z), z


class Cosine(nn.Module):
    """Logits that are cosines of features with one vector a class, times a scale."""

    def __init__(self, body: nn.Module, width: int, classes: int, scale: float = 16.0) -> None:
        super().__init__()
        self.body, self.scale = body, scale
        self.classes = nn.Parameter(torch.randn(classes, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.normalize(self.body(x)) @ F.normalize(self.classes).T


class Transformer(nn.Module):
    def __init__(self, count: int, width: int = 32) -> None:
        super().__init__()
        self.token, self.place = (
            nn.Embedding(count, width),
            nn.Parameter(torch.randn(16, width) / 50),
        )
        kind = {"batch_first": True, "norm_first": True, "dropout": 0.0, "activation": "gelu"}
        self.body = nn.TransformerEncoderLayer(width, 4, 4 * width, **kind)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, count)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(self.token(x) + self.place, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(h))


def ce(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def mse(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


SGD, Adam = torch.optim.SGD, torch.optim.Adam


@case("learning-rate-too-high")
def rate_high_images(loop: Loop) -> None:
    m, (x, y) = nn.Sequential(nn.Flatten(), *net(64, 64, 10)), images()
    loop(m, SGD(m.parameters(), lr=1.5, momentum=0.9), ce, batches(x, y, 64), 200)


@case("learning-rate-too-high")
def rate_high_adam(loop: Loop) -> None:
    m, (x, y) = net(13, 32, 32, 3, act=nn.Tanh), table("wine")
    loop(m, Adam(m.parameters(), lr=2.0), ce, batches(x, y), 200)


@case("diverged")
def diverged_table(loop: Loop) -> None:
    m, (x, y) = net(10, 32, 1), table("diabetes")
    loop(m, SGD(m.parameters(), lr=2.0), mse, batches(x, y), 150)


@case("momentum-too-high")
def momentum(loop: Loop) -> None:
    m, (x, y) = net(13, 32, 3), table("wine")
    loop(m, SGD(m.parameters(), lr=0.5, momentum=0.995), ce, batches(x, y), 200)


@case("learning-rate-too-low")
def rate_low_images(loop: Loop) -> None:
    m, (x, y) = conv(norm=False), images()
    loop(m, SGD(m.parameters(), lr=1e-5), ce, batches(x, y), 150)


@case("learning-rate-too-low")
def rate_low_text(loop: Loop) -> None:
    data, count = letters()
    m = Transformer(count)
    loop(m, torch.optim.AdamW(m.parameters(), lr=1e-7), ce, data, 96, schedule=6)


@case("vanishing-gradient")
def vanishing_tanh(loop: Loop) -> None:
    m, (x, y) = net(64, *[32] * 12, 10, act=nn.Sigmoid), images()
    loop(m, Adam(m.parameters(), lr=1e-3), ce, batches(x.flatten(1), y, 64), 200)


@case("exploding-gradient")
def exploding(loop: Loop) -> None:
    x = torch.randn(256, 30, 3)
    m = Sequence("RNN", 3, 2)
    nn.init.normal_(m.core.weight_hh_l0, std=0.5)
    loop(m, SGD(m.parameters(), lr=1e-3), ce, batches(x, (x[:, 0, 0] > 0).long()), 100)


@case("dead-units")
def dead_half(loop: Loop) -> None:
    m, (x, y) = net(13, 48, 48, 3), table("wine")
    m[2].bias.data[:24] = -20
    loop(m, Adam(m.parameters(), lr=1e-3), ce, batches(x, y), 200)


@case("dead-layer")
def dead_layer(loop: Loop) -> None:
    m, (x, y) = conv(norm=False), images()
    m[2].bias.data.fill_(-30.0)
    loop(m, SGD(m.parameters(), lr=0.05), ce, batches(x, y), 150)


@case("collapsed-representation")
def collapsed(loop: Loop) -> None:
    m, (x, _) = nn.Sequential(net(64, 64, 16, act=nn.GELU), Unit()), images()

    def alike(model: nn.Module, batch: Batch) -> Tensor:
        one, two = model(torch.cat([batch[0] + batch[1], batch[0] - batch[1]])).chunk(2)
        return (one - two).square().sum(-1).mean()

    noise = torch.randn(len(x), 64)
    loop(m, Adam(m.parameters(), lr=3e-3), alike, batches(x.flatten(1), noise, 64), 300)


@case("decay-too-strong")
def decay_table(loop: Loop) -> None:
    m, (x, y) = net(30, 32, 32, 2), table("breast_cancer")
    loop(m, SGD(m.parameters(), lr=0.1, weight_decay=0.5), ce, batches(x, y), 200)


@case("decay-too-strong")
def decay_adamw(loop: Loop) -> None:
    m, (x, y) = nn.Sequential(nn.Flatten(), *net(64, 64, 10)), images()
    optimizer = torch.optim.AdamW(m.parameters(), lr=3e-3, weight_decay=30.0)
    loop(m, optimizer, ce, batches(x, y), 200)


@case("norms-grow")
def norms_grow(loop: Loop) -> None:
    m, (x, y) = conv(), images()
    loop(m, SGD(m.parameters(), lr=1.0), ce, batches(x, y), 150)


@case("inputs-not-scaled")
def unscaled_wine(loop: Loop) -> None:
    m, (x, y) = net(13, 32, 3), table("wine", scaled=False)
    loop(m, SGD(m.parameters(), lr=1e-3), ce, batches(x, y), 200)


@case("inputs-not-scaled")
def unscaled_pixels(loop: Loop) -> None:
    m, (x, y) = net(64, 32, 10), images()
    loop(m, SGD(m.parameters(), lr=0.1), ce, batches(255 * x.flatten(1), y), 200)


@case("inputs-not-scaled")
def tiny_pixels(loop: Loop) -> None:
    m, (x, y) = net(64, 64, 10), images()
    loop(m, SGD(m.parameters(), lr=0.05, momentum=0.9), ce, batches(x.flatten(1) / 255, y, 64), 300)


@case("targets-not-scaled")
def prices(loop: Loop) -> None:
    m, (x, y) = net(10, 64, 64, 1), table("diabetes")
    loop(m, Adam(m.parameters(), lr=1e-3), mse, batches(x, 2e5 + 5e4 * y, 64), 300)


@case("data-in-order")
def in_order(loop: Loop) -> None:
    m, (x, y) = net(64, 64, 10), images()
    x, y = x.flatten(1)[y.argsort()], y.sort()[0]

    def some() -> Iterator[Batch]:
        while True:
            yield from zip(x.split(32), y.split(32), strict=True)

    loop(m, SGD(m.parameters(), lr=0.05, momentum=0.9), ce, some(), 300)


@case("batch-norm-on-tiny-batches")
def tiny_batches(loop: Loop) -> None:
    m, (x, y) = conv(), images()
    loop(m, SGD(m.parameters(), lr=0.05), ce, batches(x, y, 2), 200)


@case("no-signal")
def shuffled_table(loop: Loop) -> None:
    m, (x, y) = net(30, 32, 2), table("breast_cancer")
    loop(m, Adam(m.parameters(), lr=1e-3), ce, batches(x, y[torch.randperm(len(y))]), 200)


@case("no-signal")
def shuffled_images(loop: Loop) -> None:
    m, (x, y) = conv(norm=False), images()
    loop(m, Adam(m.parameters(), lr=1e-3), ce, batches(x, y[torch.randperm(len(y))]), 200)


@case("overfit")
def overfit_images(loop: Loop) -> None:
    m, (x, y) = nn.Sequential(nn.Flatten(), *net(64, 256, 10)), images()
    held = x[600:1200], y[600:1200]
    y = torch.where(torch.rand(len(y)) < 0.4, torch.randint(0, 10, y.shape), y)
    optimizer = Adam(m.parameters(), lr=3e-3)
    loop(m, optimizer, ce, batches(x[:100], y[:100]), 300, held_out=held)


@case("loss-spike")
def spike(loop: Loop) -> None:
    m, (x, y) = net(10, 32, 1), table("diabetes")
    corrupt = int(torch.randint(90, 130, ()))

    def some() -> Iterator[Batch]:
        for step, (a, b) in enumerate(batches(x, y)):
            yield a, (b * 30 if step == corrupt else b)

    loop(m, SGD(m.parameters(), lr=0.01), mse, some(), 240)


@case()
def game(loop: Loop) -> None:
    """The generator of a game of two, whose other player learns, too."""
    x = images()[0].flatten(1) * 2 - 1
    judge, made = net(64, 128, 64, 1, act=nn.LeakyReLU), nn.Sequential(net(16, 128, 64), nn.Tanh())
    other = Adam(judge.parameters(), lr=2e-4, betas=(0.5, 0.999))

    def some() -> Iterator[Any]:
        while True:
            real, z = x[torch.randint(len(x), (64,))], torch.randn(64, 16)
            with torch.no_grad():
                false = made(z)
            margin = F.softplus(-judge(real)).mean() + F.softplus(judge(false)).mean()
            other.zero_grad()
            margin.backward()
            other.step()
            yield torch.randn(64, 16), judge

    def fooled(model: nn.Module, batch: Any) -> Tensor:
        return F.softplus(-batch[1](model(batch[0]))).mean()

    loop(made, Adam(made.parameters(), lr=2e-4, betas=(0.5, 0.999)), fooled, some(), 600)


@case("loss-not-finite-at-times")
def nothing_to_learn(loop: Loop) -> None:
    """Now and then no label of a batch counts, and the loop passes over it."""
    m, (x, y) = nn.Sequential(nn.Flatten(), *net(64, 64, 10)), images()

    def some() -> Iterator[Batch]:
        for step, (a, b) in enumerate(batches(x, y)):
            yield a, (torch.full_like(b, -100) if step % 40 == 17 else b)

    loop(m, Adam(m.parameters(), lr=1e-3), ce, some(), 240, passes=True)


@case("not-finite")
def root_of_zero(loop: Loop) -> None:
    m, (x, y) = net(10, 32, 1), table("diabetes")

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch[0]) - batch[1]).abs().pow(2).sum(1).sqrt().mean()

    def some() -> Iterator[Batch]:
        for step, (a, b) in enumerate(batches(x, y)):
            yield a, (m(a).detach() if step == 60 else b)

    loop(m, SGD(m.parameters(), lr=0.01), loss, some(), 160)


@case("not-finite")
def bad_batch(loop: Loop) -> None:
    m, (x, y) = conv(), images()

    def some() -> Iterator[Batch]:
        for step, (a, b) in enumerate(batches(x, y)):
            yield (a * math.nan if step == 75 else a), b

    loop(m, SGD(m.parameters(), lr=0.05), ce, some(), 150)


@case("always-clipped")
def clipped(loop: Loop) -> None:
    m, (x, y) = net(13, 32, 3), table("wine")
    loop(m, SGD(m.parameters(), lr=0.05), ce, batches(x, y), 200, clip=1e-3)


@case("softmax-twice")
def softmax_twice(loop: Loop) -> None:
    m, (x, y) = nn.Sequential(*net(64, 32, 10), nn.Softmax(-1)), images()
    loop(m, Adam(m.parameters(), lr=3e-3), ce, batches(x.flatten(1), y), 200)


@case("softmax-over-batch")
def softmax_over_batch(loop: Loop) -> None:
    m, (x, y) = nn.Sequential(*net(64, 64, 10), nn.LogSoftmax(0)), images()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.nll_loss(model(batch[0]), batch[1])

    loop(m, Adam(m.parameters(), lr=1e-3), loss, batches(x.flatten(1), y, 64), 200)


@case("rectified-logits")
def rectified_logits(loop: Loop) -> None:
    m, (x, y) = nn.Sequential(*net(64, 64, 10), nn.ReLU()), images()
    nn.init.constant_(m[2].bias[:3].detach(), -3.0)
    loop(m, SGD(m.parameters(), lr=0.1, momentum=0.9), ce, batches(x.flatten(1), y, 64), 200)


@case("dropout-too-strong")
def dropout_too_strong(loop: Loop) -> None:
    first, last = net(64, 64), net(64, 64, 10)
    m = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.95), last[:2], nn.Dropout(0.95), last[2])
    x, y = images()
    loop(m, Adam(m.parameters(), lr=1e-3), ce, batches(x.flatten(1), y, 64), 200)


@case("zero-grad-forgotten")
def not_cleared(loop: Loop) -> None:
    m, (x, y) = net(64, 32, 10, act=nn.GELU), images()
    loop(m, Adam(m.parameters(), lr=1e-3), ce, batches(x.flatten(1), y), 160, zero=False)


@case("parameter-in-no-optimizer")
def left_out(loop: Loop) -> None:
    m, (x, y) = net(13, 32, 32, 3), table("wine")
    loop(m, Adam(m[4].parameters(), lr=3e-3), ce, batches(x, y), 200)


@case("no-gradient")
def detached(loop: Loop) -> None:
    class Detached(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).detach())

    m, (x, y) = Detached(net(64, 64, 64), nn.Linear(64, 10)), images()
    loop(m, SGD(m.parameters(), lr=0.1), ce, batches(x.flatten(1), y, 64), 200)


@case("constant-target")
def one_class(loop: Loop) -> None:
    m, (x, y) = nn.Sequential(nn.Flatten(), *net(64, 64, 10)), images()
    loop(m, Adam(m.parameters(), lr=3e-3), ce, batches(x, torch.full_like(y, 3), 64), 200)


@case("constant-target")
def zero_targets(loop: Loop) -> None:
    m, (x, y) = net(10, 32, 1), table("diabetes")
    loop(m, Adam(m.parameters(), lr=3e-3), mse, batches(x, 0 * y, 64), 200)


@case("wrong-sign")
def minus_cross_entropy(loop: Loop) -> None:
    m, (x, y) = nn.Sequential(nn.Flatten(), *net(64, 64, 10)), images()
    loop(m, Adam(m.parameters(), lr=1e-3), lambda m, b: -ce(m, b), batches(x, y, 64), 200)


@case("broadcast-targets")
def column_and_row(loop: Loop) -> None:
    m, (x, y) = net(10, 32, 1), table("diabetes")
    loop(m, Adam(m.parameters(), lr=3e-3), mse, batches(x, y[:, 0], 64), 200)


@case("far-above-guess")
def tiny_targets(loop: Loop) -> None:
    m, (x, y) = net(10, 32, 1), table("diabetes")
    loop(m, Adam(m.parameters(), lr=1e-3), mse, batches(x, 1e-4 * y, 64), 300)


@case("no-signal")
def shuffled_pairs(loop: Loop) -> None:
    m, x = nn.Sequential(net(32, 64, 16), Unit()), images()[0].flatten(1)

    def pairs(model: nn.Module, batch: Batch) -> Tensor:
        one, two = model(batch[0]), model(batch[1])
        return F.cross_entropy(one @ two.T / 0.1, torch.arange(len(one)))

    others = x[torch.randperm(len(x)), 32:]
    loop(m, Adam(m.parameters(), lr=1e-3), pairs, batches(x[:, :32], others, 64), 200)


@case("training-in-eval-mode")
def evaluating(loop: Loop) -> None:
    m, (x, y) = conv().eval(), images()
    loop(m, SGD(m.parameters(), lr=0.05), ce, batches(x, y), 150)


@case("scaler-skips-steps")
def scaler_skips(loop: Loop) -> None:
    m, (x, y) = net(13, 32, 3), table("wine")

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return ce(model, batch) + 0 * (model[0].weight * 0).sum().sqrt()

    scaler = torch.amp.GradScaler("cpu")
    loop(m, SGD(m.parameters(), lr=0.1), loss, batches(x, y), 60, scaler=scaler)


@case("duplicate-units")
def equal_units(loop: Loop) -> None:
    m, (x, y) = net(10, 8, 1, act=nn.Tanh), table("diabetes")
    for p in m.parameters():
        nn.init.constant_(p, 0.1)
    loop(m, SGD(m.parameters(), lr=0.05), mse, batches(x, y), 200)


@case("saturated-attention")
def sharp_attention(loop: Loop) -> None:
    data, count = letters()
    m = Transformer(count)
    m.body.self_attn.in_proj_weight.data[:64] *= 12
    loop(m, torch.optim.AdamW(m.parameters(), lr=3e-3), ce, data, 128, schedule=8)


@case("constant-input")
def constant_input(loop: Loop) -> None:
    m, (x, y) = net(13, 32, 3), table("wine")
    loop(m, Adam(m.parameters(), lr=3e-3), ce, batches(torch.ones_like(x), y), 160)


@case("constant-input")
def ignored_input(loop: Loop) -> None:
    m, (x, y) = net(64, 32, 32, 10), images()

    def blind(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0] * 1e-9), batch[1])

    loop(m, SGD(m.parameters(), lr=0.05), blind, batches(x.flatten(1), y, 64), 160)


@case("collapsed-representation")
def collapsed_pairs(loop: Loop) -> None:
    m, x = net(64, 64, 16), images()[0].flatten(1)

    def alike(model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[0] + batch[1]), model(batch[0] - batch[1]).detach())

    loop(m, Adam(m.parameters(), lr=1e-2), alike, batches(x, 0.5 * torch.randn(len(x), 64)), 400)


@case("lost-symmetry")
def lost_symmetry(loop: Loop) -> None:
    m, (x, y) = conv(norm=False), images()
    optimizer = Adam(m.parameters(), lr=3e-3)
    for _ in range(400):
        rows = torch.randint(0, len(x), (128,))
        turned = torch.cat([c.rot90(k, (2, 3)) for k, c in enumerate(x[rows].chunk(4))])
        F.cross_entropy(m(turned), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    claims = {"equivariance": {"symmetries": ["cyclic4"]}, "curvature": {"k": 1}}
    loop(m, Adam(m.parameters(), lr=3e-3), ce, batches(x, y, 64), 250, probes=claims)


@case()
def healthy_second_phase(loop: Loop) -> None:
    m, (x, y) = nn.Sequential(nn.Flatten(), *net(64, 64, 10)), images()
    optimizer = Adam(m.parameters(), lr=3e-3)
    for _ in range(400):
        rows = torch.randint(0, len(x), (64,))
        F.cross_entropy(m(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    loop(m, Adam(m.parameters(), lr=1e-4), ce, batches(x, y, 64), 160)


@case()
def healthy_binary(loop: Loop) -> None:
    m, (x, y) = net(30, 16, 1), table("breast_cancer")

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    optimizer = SGD(m.parameters(), lr=0.003, momentum=0.98)
    loop(m, optimizer, loss, batches(x, y.float()[:, None]), 400)


@case()
def healthy_scaler(loop: Loop) -> None:
    m, (x, y) = net(64, 32, 10, norm=nn.BatchNorm1d), images()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    loop(m, Adam(m.parameters(), lr=3e-3), ce, batches(x.flatten(1), y), 200, scaler=scaler)


@case()
def healthy_warm_up(loop: Loop) -> None:
    m, (x, y) = conv(), images()
    optimizer = torch.optim.AdamW(m.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=1000)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    loop(m, optimizer, ce, batches(x, y, 64), 250)


@case()
def healthy_tanh(loop: Loop) -> None:
    m, (x, y) = net(30, 32, 2, act=nn.Tanh), table("breast_cancer")
    loop(m, SGD(m.parameters(), lr=0.1), ce, batches(x, y), 200)


@case()
def healthy_images(loop: Loop) -> None:
    m, (x, y) = conv(), images()
    optimizer = SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loop(m, optimizer, ce, batches(x, y, 64), 200)


@case()
def healthy_plain_conv(loop: Loop) -> None:
    m, (x, y) = conv(norm=False), images()
    held = x[1500:], y[1500:]
    loop(m, Adam(m.parameters(), lr=5e-3), ce, batches(x[:1500], y[:1500], 64), 250, held_out=held)


@case()
def healthy_text(loop: Loop) -> None:
    data, count = letters(16)
    m = Transformer(count)
    loop(m, torch.optim.AdamW(m.parameters(), lr=5e-3), ce, data, 160, schedule=10, clip=1.0)


@case()
def healthy_many_classes(loop: Loop) -> None:
    """Of 300 classes a batch has 16 labels."""
    center, m = torch.randn(300, 32), net(32, 64, 300)

    def some() -> Iterator[Batch]:
        while True:
            y = torch.randint(300, (16,))
            yield center[y] + torch.randn(16, 32), y

    loop(m, Adam(m.parameters(), lr=1e-3), ce, some(), 375)


@case()
def healthy_lstm(loop: Loop) -> None:
    m, (x, y) = Sequence("LSTM", 8, 10), images()
    loop(m, Adam(m.parameters(), lr=1e-2), ce, batches(x[:, 0], y, 64), 200)


@case()
def healthy_regression(loop: Loop) -> None:
    x = torch.rand(512, 2) * 4 - 2
    m = net(2, 64, 64, 1, act=nn.GELU)
    target = (x[:, :1] * 2).sin() * x[:, 1:]
    loop(m, Adam(m.parameters(), lr=3e-3), mse, batches(x, target, 64), 300)


@case()
def healthy_autoencoder(loop: Loop) -> None:
    m, x = net(64, 32, 16, 32, 64), images()[0].flatten(1)
    loop(m, Adam(m.parameters(), lr=3e-3), mse, batches(x, x, 64), 300)


@case()
def healthy_full_batch(loop: Loop) -> None:
    m, (x, y) = net(13, 16, 3, act=nn.Tanh), table("wine")
    loop(m, SGD(m.parameters(), lr=0.5), ce, batches(x, y, len(x)), 200)


@case()
def healthy_deep(loop: Loop) -> None:
    m, (x, y) = net(64, *[64] * 6, 10), images()
    loop(m, Adam(m.parameters(), lr=1e-3), ce, batches(x.flatten(1), y, 64), 250)


@case()
def healthy_frozen(loop: Loop) -> None:
    m, (x, y) = conv(), images()
    m[0].requires_grad_(False)
    m[1].eval()
    optimizer = SGD([p for p in m.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    loop(m, optimizer, ce, batches(x, y, 64), 200)


@case()
def healthy_large_steps(loop: Loop) -> None:
    m, (x, y) = nn.Sequential(nn.Flatten(), *net(64, 64, 10)), images()
    loop(m, SGD(m.parameters(), lr=0.5), ce, batches(x, y, 64), 250)


@case()
def healthy_dropout(loop: Loop) -> None:
    body = net(64, 128, 10)
    m, (x, y) = nn.Sequential(nn.Flatten(), body[0], nn.ReLU(), nn.Dropout(0.3), body[2]), images()
    optimizer = torch.optim.AdamW(m.parameters(), lr=3e-3, weight_decay=0.1)
    loop(m, optimizer, ce, batches(x, y, 32), 250)


def views(strength: float = 0.2, size: int = 64) -> Iterator[Batch]:
    """Two noisy views of images."""
    x = images()[0].flatten(1)
    for a, b in batches(x, x, size):
        yield a + strength * torch.randn_like(a), b + strength * torch.randn_like(b)


def simsiam(stop: bool, predict: bool = True) -> Loss:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        (p, z), (q, w) = model(batch[0]), model(batch[1])
        p, q = (p, q) if predict else (z, w)
        z, w = (z.detach(), w.detach()) if stop else (z, w)
        return -(F.cosine_similarity(p, w).mean() + F.cosine_similarity(q, z).mean()) / 2

    return loss


def byol(stop: bool, model: nn.Module, rate: float = 0.02) -> tuple[Loss, Iterator[Batch]]:
    """Against a moving average of the weights; without a stop against those of the step."""
    teacher = copy.deepcopy(model)

    def some() -> Iterator[Batch]:
        for pair in views():
            yield pair
            with torch.no_grad():
                for mean, p in zip(teacher.parameters(), model.parameters(), strict=True):
                    mean.lerp_(p, rate)

    def loss(student: nn.Module, batch: Batch) -> Tensor:
        one, two = (F.normalize(student(x)[0], dim=-1) for x in batch)
        if stop:
            with torch.no_grad():
                first, second = (F.normalize(teacher(x)[1], dim=-1) for x in batch)
        else:
            first, second = (F.normalize(student(x)[1], dim=-1) for x in batch)
        return 4 - 2 * ((one * second).sum(-1) + (two * first).sum(-1)).mean()

    return loss, some()


def contrastive(model: nn.Module, batch: Batch) -> Tensor:
    """NT-Xent of SimCLR."""
    z = F.normalize(torch.cat([model(batch[0]), model(batch[1])]), dim=1)
    likeness = (z @ z.T / 0.2).fill_diagonal_(-1e9)
    other = torch.arange(len(z)).roll(len(z) // 2)
    return F.cross_entropy(likeness, other)


def supervised_contrastive(model: nn.Module, batch: Batch) -> Tensor:
    z = model(batch[0])
    z = z / z.norm(dim=1, keepdim=True)
    likeness = (z @ z.T / 0.2).fill_diagonal_(-1e9).log_softmax(1)
    same = (batch[1][:, None] == batch[1]).float().fill_diagonal_(0.0)
    return -((same * likeness).sum(1) / same.sum(1).clamp_min(1)).mean()


@case("collapsed-representation")
def simsiam_without_stop(loop: Loop) -> None:
    m = Predicted(nn.BatchNorm1d)
    loop(m, SGD(m.parameters(), lr=0.05, momentum=0.9), simsiam(stop=False), views(), 300)


@case("collapsed-representation")
def simsiam_without_predictor(loop: Loop) -> None:
    m = Predicted(nn.BatchNorm1d)
    loop(m, Adam(m.parameters(), lr=3e-3), simsiam(True, predict=False), views(), 300)


@case("collapsed-representation")
def byol_without_stop(loop: Loop) -> None:
    m = Predicted(nn.BatchNorm1d)
    loss, some = byol(False, m)
    loop(m, Adam(m.parameters(), lr=3e-3), loss, some, 300)


@case("collapsed-representation")
def byol_without_predictor(loop: Loop) -> None:
    """A model that gives out its own loss."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = net(64, 64, 32, norm=nn.BatchNorm1d)

        def forward(self, one: Tensor, two: Tensor) -> Tensor:
            z, w = (F.normalize(self.encoder(x), dim=-1) for x in (one, two))
            return 4 - 2 * ((z * w.detach()).sum(-1) + (w * z.detach()).sum(-1)).mean()

    m = Own()
    loop(m, SGD(m.parameters(), lr=0.05, momentum=0.9), lambda m, b: m(*b), views(), 300)


@case("collapsed-representation")
def attracted_only(loop: Loop) -> None:
    """Pairs without negatives, whose cosines a loss of its own writes out."""
    m = net(64, 64, 16, act=nn.Tanh)

    def alike(model: nn.Module, batch: Batch) -> Tensor:
        one, two = model(batch[0]), model(batch[1])
        lengths = (one * one).sum(1).sqrt() * (two * two).sum(1).sqrt()
        return (1 - (one * two).sum(1) / lengths).mean()

    loop(m, Adam(m.parameters(), lr=1e-3), alike, views(), 400)


@case()
def healthy_simsiam(loop: Loop) -> None:
    m = Predicted(nn.BatchNorm1d)
    loop(m, SGD(m.parameters(), lr=0.05, momentum=0.9), simsiam(stop=True), views(), 300)


@case()
def healthy_byol(loop: Loop) -> None:
    m = Predicted(nn.BatchNorm1d)
    loss, some = byol(True, m)
    loop(m, Adam(m.parameters(), lr=3e-3), loss, some, 300)


@case()
def healthy_contrastive(loop: Loop) -> None:
    m = net(64, 64, 32)
    loop(m, Adam(m.parameters(), lr=1e-3), contrastive, views(), 300)


@case()
def healthy_queue(loop: Loop) -> None:
    """MoCo: one positive beside negatives of earlier steps, all by a moving average."""
    m = net(64, 64, 16)
    teacher, queue = copy.deepcopy(m), F.normalize(torch.randn(256, 16), dim=1)

    def key(x: Tensor) -> Tensor:
        with torch.no_grad():
            return F.normalize(teacher(x), dim=1)

    def some() -> Iterator[Any]:
        held = queue
        for one, two in views():
            with torch.no_grad():
                for mean, p in zip(teacher.parameters(), m.parameters(), strict=True):
                    mean.lerp_(p, 0.02)
            yield one, two, held
            held = torch.cat([held[64:], key(two)])

    def loss(model: nn.Module, batch: Any) -> Tensor:
        z = F.normalize(model(batch[0]), dim=1)
        positive = (z * key(batch[1])).sum(1, keepdim=True)
        likeness = torch.cat([positive, z @ batch[2].T], 1) / 0.2
        return F.cross_entropy(likeness, torch.zeros(len(z), dtype=torch.long))

    loop(m, Adam(m.parameters(), lr=1e-3), loss, some(), 300)


@case()
def healthy_supervised_contrastive(loop: Loop) -> None:
    m, (x, y) = net(64, 64, 32), images()
    loop(
        m, Adam(m.parameters(), lr=1e-3), supervised_contrastive, batches(x.flatten(1), y, 64), 300
    )


@case()
def healthy_cosine_head(loop: Loop) -> None:
    m, (x, y) = Cosine(net(64, 64, 32), 32, 10), images()
    loop(m, Adam(m.parameters(), lr=3e-3), ce, batches(x.flatten(1), y, 64), 250)


@case()
def healthy_student(loop: Loop) -> None:
    """Of a teacher whose outputs point into a narrow cone."""
    m, teacher = net(64, 64, 16), net(64, 32, 16, act=nn.Tanh)
    teacher[-1].bias.data += 0.8 * torch.randn(16)

    def agree(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            taught = teacher(batch[0])
        return 1 - F.cosine_similarity(model(batch[0]), taught).mean()

    loop(m, Adam(m.parameters(), lr=3e-3), agree, views(), 300)


def digits_net() -> tuple[nn.Sequential, Batch]:
    x, y = images()
    return net(64, 64, 10), (x.flatten(1), y)


def between(some: Iterator[Batch], act: Callable[[int], None]) -> Iterator[Batch]:
    """Batches, before each of which something is done, with the number of the step."""
    for step, batch in enumerate(some):
        act(step)
        yield batch


@case("weights-written-back")
def loaded_each_step(loop: Loop) -> None:
    m, data = digits_net()
    first = copy.deepcopy(m.state_dict())
    some = between(batches(*data, 64), lambda _: m.load_state_dict(first) and None)
    loop(m, Adam(m.parameters(), lr=1e-3), ce, some, 200)


@case("weights-written-back")
def never_the_best(loop: Loop) -> None:
    """After each evaluation the best weights are loaded, and a wrong sign keeps the first."""
    m, (x, y) = digits_net()
    best: dict[str, Any] = {"loss": -math.inf, "weights": None}

    def evaluate(step: int) -> None:
        if step % 10 == 0:
            with torch.no_grad():
                loss = -float(F.cross_entropy(m(x[1500:]), y[1500:]))
            if best["weights"] is None or loss < best["loss"]:
                best.update(loss=loss, weights=copy.deepcopy(m.state_dict()))
            m.load_state_dict(best["weights"])

    some = between(batches(x[:1500], y[:1500], 64), evaluate)
    loop(m, SGD(m.parameters(), lr=0.02), ce, some, 240)


@case("weights-written-back")
def old_copy_restored(loop: Loop) -> None:
    """Averaged weights are evaluated, and those restored that the first evaluation put aside."""
    m, data = digits_net()
    mean, aside = copy.deepcopy(m), {}

    def evaluate(step: int) -> None:
        with torch.no_grad():
            for a, p in zip(mean.parameters(), m.parameters(), strict=True):
                a.lerp_(p, 0.1)
        if step and step % 20 == 0:
            aside.setdefault("weights", copy.deepcopy(m.state_dict()))
            m.load_state_dict(mean.state_dict())
            m.load_state_dict(aside["weights"])

    optimizer = SGD(m.parameters(), lr=0.05, momentum=0.9)
    loop(m, optimizer, ce, between(batches(*data, 64), evaluate), 240, schedule=10)


def lookahead(model: nn.Module, slow_moves: float, every: int = 5) -> Callable[[int], None]:
    """Slow weights that follow the fast ones, which go back to them."""
    slow = [p.detach().clone() for p in model.parameters()]

    def act(step: int) -> None:
        if step and step % every == 0:
            with torch.no_grad():
                for s, p in zip(slow, model.parameters(), strict=True):
                    s.lerp_(p, slow_moves)
                    p.copy_(s)

    return act


@case("weights-written-back")
def slow_weights_stay(loop: Loop) -> None:
    m, data = digits_net()
    some = between(batches(*data, 64), lookahead(m, 0.0))
    loop(m, Adam(m.parameters(), lr=3e-3), ce, some, 250, schedule=10)


@case()
def healthy_lookahead(loop: Loop) -> None:
    m, data = digits_net()
    some = between(batches(*data, 64), lookahead(m, 0.5))
    loop(m, Adam(m.parameters(), lr=3e-3), ce, some, 250, schedule=10)


@case()
def healthy_averaged(loop: Loop) -> None:
    """Averaged weights are evaluated, and the right ones restored."""
    m, (x, y) = digits_net()
    mean = copy.deepcopy(m)

    def evaluate(step: int) -> None:
        with torch.no_grad():
            for a, p in zip(mean.parameters(), m.parameters(), strict=True):
                a.lerp_(p, 0.1)
            if step % 10 == 0:
                aside = copy.deepcopy(m.state_dict())
                m.load_state_dict(mean.state_dict())
                m(x[1500:])
                m.load_state_dict(aside)

    some = between(batches(x[:1500], y[:1500], 64), evaluate)
    loop(m, Adam(m.parameters(), lr=1e-3), ce, some, 250, schedule=10)


@case()
def healthy_sharpness_aware(loop: Loop) -> None:
    """SAM: to where the loss is largest nearby, and back within the step."""
    m, data = digits_net()
    optimizer = SGD(m.parameters(), lr=0.05, momentum=0.9)

    def sharp(model: nn.Module, batch: Batch) -> Tensor:
        params = [*model.parameters()]
        slopes = torch.autograd.grad(ce(model, batch), params)
        size = 0.05 / torch.stack([g.norm() for g in slopes]).norm()
        moved = {
            n: p + size * g for (n, p), g in zip(model.named_parameters(), slopes, strict=True)
        }
        return F.cross_entropy(torch.func.functional_call(model, moved, batch[0]), batch[1])

    loop(m, optimizer, sharp, batches(*data, 64), 200)


@case()
def healthy_warm_up_from_zero(loop: Loop) -> None:
    """The learning rate is exactly 0 at the start and at the end."""
    m, data = digits_net()
    optimizer = Adam(m.parameters(), lr=3e-3)
    shape = lambda step: max(0.0, min(1.0, (step - 15) / 30, (230 - step) / 30))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    loop(m, optimizer, ce, batches(*data, 64), 250)


@case()
def healthy_refusals(loop: Loop) -> None:
    """Full-batch steps that raise the loss are taken back and tried again, half as long."""
    m, (x, y) = digits_net()
    optimizer = SGD(m.parameters(), lr=16.0)
    last: dict[str, Any] = {"loss": math.inf, "weights": None}

    def accept(_: int) -> None:
        with torch.no_grad():
            loss = float(F.cross_entropy(m(x), y))
        if loss > last["loss"]:
            m.load_state_dict(last["weights"])
        else:
            last.update(loss=loss, weights=copy.deepcopy(m.state_dict()))
        optimizer.param_groups[0]["lr"] *= 0.5 if loss > last["loss"] else 1.1

    loop(m, optimizer, ce, between(batches(x, y, len(x)), accept), 200, schedule=4)


@case()
def healthy_back_once(loop: Loop) -> None:
    """After a bad batch the training goes back to its last checkpoint."""
    m, (x, y) = digits_net()
    saved: dict[str, Any] = {}

    def act(step: int) -> None:
        if step == 100:
            saved.update(copy.deepcopy(m.state_dict()))
        if step == 130:
            m.load_state_dict(saved)

    some = between(batches(x, y, 64), act)
    loop(m, Adam(m.parameters(), lr=1e-3), ce, some, 250, schedule=10)


def judged(name: str, seed: int) -> dict[str, Any]:
    """One run: what it has, and what is said of it."""
    run, id = CASES[name]
    torch.manual_seed(seed)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as home:
        run(Loop(Path(home) / "run"))
        findings = eq.Run(Path(home) / "run").findings()
    grave = [f for f in findings if f.level in ("alarm", "warning")]
    loud = [f for f in findings if f.level != "good"] if id == "norms-grow" else grave
    rank = next((k + 1 for k, f in enumerate(loud) if f.id == id), 0) if id else 0
    remedies = all(f.remedy for f in grave)
    said = [f.id or f.text[:60] for f in grave]
    hollow = [f.text for f in findings if f.level == "good" and "edge" in f.text] if id else []
    return {"case": name, "seed": seed, "id": id, "rank": rank, "said": said, "remedies": remedies,
            "praised": len(hollow), "seconds": round(time.process_time() - began, 1)}  # fmt: skip


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name in names or CASES:
        for seed in SEEDS:
            row = judged(name, seed)
            rows.append(row)
            right = row["rank"] == 1 if row["id"] else not row["said"]
            mark = "ok " if right else ".. " if row["rank"] else "BAD"
            print(
                f"{mark} {name:22} {seed} {row['seconds']:5.1f} s  {row['id']:26} {row['said']}",
                flush=True,
            )
    sick, well = [r for r in rows if r["id"]], [r for r in rows if not r["id"]]
    total = {
        "sick": len(sick),
        "named_first": sum(r["rank"] == 1 for r in sick),
        "named": sum(r["rank"] > 0 for r in sick),
        "beside": sum(len([s for s in r["said"] if s != r["id"]]) for r in sick),
        "healthy": len(well),
        "healthy_without_warning": sum(not r["said"] for r in well),
        "every_warning_has_a_remedy": all(r["remedies"] for r in rows),
    }
    print(json.dumps(total))
    if not names:
        told = {"total": total, "runs": rows}
        place = Path(__file__).parent / "results" / "diseases.json"
        place.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
