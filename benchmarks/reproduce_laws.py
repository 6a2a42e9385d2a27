"""Published results about conserved quantities and learned symmetries, small."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from experiments import Experiment, Figures, Values, digits, mean, perceptron
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.demos.demo import Batch, batches
from eqtoolbox.demos.digits import DigitNet
from eqtoolbox.probes import Conservation
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry import discover_data

SIZES = (512, 64, 16, 4, 1)
RULES = {
    "SGD": {},
    "with decay": {"weight_decay": 5e-3},
    "with momentum": {"momentum": 0.9},
    "with both": {"weight_decay": 5e-3, "momentum": 0.9},
}


def balance(
    seed: int, steps: int = 4000, lr: float = 0.05, sizes: Sequence[int] = SIZES
) -> Figures:
    """u² - w² of y = u w x after training over that before, by batch size; and the law of its rate.

    The charge is that of the symmetry found in the loss. What mini-batches do to it is the rate of
    a run less that of the run on all data, whose steps are finite, too.
    """
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 1, generator=rng)
    data = (x, x + torch.randn(512, 1, generator=rng))
    left = {size: _left(data, size, steps, lr, rng) for size in sizes}
    found = {f"charge kept, batch {size}": share for size, share in left.items()}
    whole, *small = (-math.log(share) / steps for share in left.values())
    logs = [math.log(rate - whole) for rate in small]
    found["slope of log rate against log batch"] = float(
        np.polyfit([math.log(size) for size in sizes[1:]], logs, 1)[0]
    )
    return found


def _left(data: Batch, size: int, steps: int, lr: float, rng: torch.Generator) -> float:
    """The share of the charge that is left after training."""
    loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean() / 2
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (2.0, 0.2), strict=True):
            parameter.fill_(value)
    (rescale,) = (s for s in eq.weights.discover(model, data, loss) if s.family == "rescale")
    charge = lambda: float(rescale.charge({n: p.detach() for n, p in model.named_parameters()}))
    start, optimizer = charge(), torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        rows = torch.randint(len(data[0]), (size,), generator=rng)
        batch = data if size == len(data[0]) else (data[0][rows], data[1][rows])
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    return charge() / start


def closed_forms(seed: int, steps: int = 200) -> Figures:
    """How far charges of exact symmetries moved, and how far from the closed forms that is."""
    found: Figures = {}
    for rule, options in RULES.items():
        torch.manual_seed(seed)
        model, criterion, sink = DigitNet(), nn.CrossEntropyLoss(), MemorySink()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, **options)
        with eq.attach(
            model,
            optimizer,
            criterion=criterion,
            probes=[Conservation(growth=0)],
            budget=None,
            memory=None,
            sinks=[sink],
        ):
            for images, labels in batches(digits()[0], 64, steps, seed):
                optimizer.zero_grad()
                criterion(model(images), labels).backward()
                optimizer.step()
        last = {r.name.removeprefix("conservation/"): r for r in sink.records if r.status == "ok"}
        found[f"drift, {rule}"] = last["forecast/rescale"].facts["measured"]
        off = [r.value for name, r in last.items() if name.startswith("forecast_error/")]
        found[f"off the closed form, {rule}"] = max(off)
    return found


def orthogonal(seed: int, steps: int = 2500) -> Figures:
    """Generators of O(5) in a network trained on the paper's function of two vectors."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(n, 2, 5, generator=rng)
    model = perceptron((10, 128, 128, 1), nn.Tanh, seed)
    untrained, x = discover_data(model, draw(400)), draw(1000)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = draw(256)
        optimizer.zero_grad()
        (model(batch) - invariant(batch)).square().mean().backward()
        optimizer.step()
        slower.step()
    found = discover_data(model, draw(400))
    with torch.no_grad():
        unexplained = (model(x) - invariant(x)).square().mean() / invariant(x).var()
    return {
        "generators found": float(found.dimension or 0),
        "runs that name it so(5)": float(found.name == "so(5)"),
        "gap of the spectrum": found.gap,
        "gap of shuffled data": found.null_gap,
        "share of the variance not learned": float(unexplained),
        "generators found before training": float(untrained.dimension or 0),
    }


def invariant(x: Tensor) -> Tensor:
    """sin|a| - |b|³/2 + a·b / |a||b| of pairs of vectors, (batch, 2, 5) -> (batch, 1)."""
    one, two = x.norm(dim=2, keepdim=True).unbind(1)
    cosine = (x[:, 0] * x[:, 1]).sum(1, keepdim=True) / (one * two)
    return one.sin() - two**3 / 2 + cosine


def balances(found: Values) -> str:
    """All of it stays in full batch, and its rate goes as 1 / batch."""
    kept, slope = mean(found[f"charge kept, batch {SIZES[0]}"]), mean(list(found.values())[-1])
    return "reproduced" if kept > 0.95 and abs(slope + 1) < 0.15 else "not reproduced"


def predicts(found: Values) -> str:
    """Every family of charges within a hundredth of its scale of the closed form."""
    off = max(max(v) for key, v in found.items() if key.startswith("off"))
    return "reproduced" if off < 0.01 else "not reproduced"


def recovers(found: Values) -> str:
    """Ten generators in every run, none before training."""
    right = set(found["generators found"]) == {10.0}
    return "reproduced" if right and not any(list(found.values())[-1]) else "not reproduced"


EXPERIMENTS = (
    Experiment(
        name="law of balance",
        claim="gradient flow keeps |u|² - |w|²; the noise of mini-batches drives it to zero, at a "
        "rate that goes as one over the batch",
        paper="Ziyin et al. 2023, arXiv 2308.06671",
        reference="slope -1; kept in full batch",
        note="y = u w x with noisy labels, u = 2, w = 0.2, η = 0.05, 4,000 steps; the charge of "
        "the symmetry that `weights.discover` finds",
        runs=(balance,),
        judge=balances,
        seeds=5,
    ),
    Experiment(
        name="closed forms of conserved quantities",
        claim="decay, momentum and finite steps move charges as closed forms say",
        paper="Kunin et al. 2021, arXiv 2012.04728",
        reference="the curves lie on each other",
        note="convolutional network with batch normalisation, batch 64, η = 0.05, decay 0.005, "
        "momentum 0.9, 200 steps; `Conservation`: drift of the rescaling charges over "
        "their scale, and the distance from the closed form of the family furthest from it",
        runs=(closed_forms,),
        judge=predicts,
    ),
    Experiment(
        name="generators of a learned symmetry",
        claim="the Lie algebra that a network has learned can be read off its derivatives",
        paper="Moskalev et al. 2022, arXiv 2210.04345 (LieGG)",
        reference="the 10 generators of O(5)",
        note="sin|a| - |b|³/2 + a·b / |a||b| of a, b in R⁵, tanh 10-128-128-1; `discover_data`",
        runs=(orthogonal,),
        judge=recovers,
        seeds=5,
    ),
)
