"""Published results about faster training by curvature and by symmetry, at tuned learning rates."""

import math
import statistics
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from experiments import Experiment, Figures, Values, digits, perceptron
from torch import Tensor, nn

CUT = 0.3  # training loss to reach
RATES = (0.2, 0.3, 0.5, 0.7, 1.0)
LOST = 1e4  # a loss from which a run has diverged
SETTINGS: dict[str, tuple[int, type[nn.Module], int]] = {  # hidden layers, activation, batch
    "tanh, full batch": (4, nn.Tanh, 0),
    "ReLU, full batch": (2, nn.ReLU, 0),
    "tanh, batch 64": (4, nn.Tanh, 64),
}
SIGMA = 2.0  # CDAT at the edge
MEMORY = 0.9  # of CDAT's averages with mini-batches, as in the paper


class Constant:
    """A constant learning rate; a step costs one gradient."""

    second, cost = False, 1.0

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def __call__(self, parameters: list[nn.Parameter], gradient: Sequence[Tensor]) -> float:
        return self.lr


class Cdat:
    """lr = sigma max(-g·u, 0) / |u·H u| for the update u = -g; a step costs 2.5 gradients."""

    second, cost = True, 2.5

    def __init__(self, memory: float) -> None:
        self.memory, self.above, self.below = memory, math.nan, math.nan

    def __call__(self, parameters: list[nn.Parameter], gradient: Sequence[Tensor]) -> float:
        update = [-g.detach() for g in gradient]
        bent = torch.autograd.grad(gradient, parameters, update)
        above = float(sum(u.square().sum() for u in update))
        below = abs(float(sum((u * h).sum() for u, h in zip(update, bent, strict=True))))
        if math.isnan(self.above):
            self.above, self.below = above, below
        self.above = self.memory * self.above + (1 - self.memory) * above
        self.below = self.memory * self.below + (1 - self.memory) * below
        return SIGMA * self.above / (self.below + 1e-12)


def trained(
    model: nn.Module, rate: Constant | Cdat, batch: int, steps: int, seed: int
) -> tuple[float, float]:
    """Training loss after `steps`, and the step at which it was below `CUT`: infinite if never."""
    (images, labels), _ = digits()
    rng, reached = torch.Generator().manual_seed(seed), math.inf
    parameters = list(model.parameters())
    whole = lambda: F.cross_entropy(model(images), labels)
    for step in range(steps):
        rows = torch.randint(len(images), (batch,), generator=rng) if batch else slice(None)
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        gradient = torch.autograd.grad(loss, parameters, create_graph=rate.second)
        lr = rate(parameters, gradient)
        with torch.no_grad():
            for p, g in zip(parameters, gradient, strict=True):
                p.sub_(lr * g)
            if step % 5 == 4:
                now = float(whole())
                reached = min(reached, step + 1 if now < CUT else math.inf)
    return (now if now < LOST else math.inf), reached


def cdat(seed: int, steps: int = 200, rates: Sequence[float] = RATES) -> Figures:
    """CDAT beside the best constant rate, of two networks and with mini-batches."""
    found: Figures = {}
    for name, (depth, activation, batch) in SETTINGS.items():
        widths = (64, *[64] * depth, 10)
        make = lambda widths=widths, activation=activation: perceptron(widths, activation, seed)
        runs = [trained(make(), Constant(lr), batch, steps, seed) for lr in rates]
        own = trained(make(), Cdat(MEMORY if batch else 0.0), batch, steps, seed)
        found[f"{name}: steps to loss {CUT}, best constant rate"] = min(r[1] for r in runs)
        found[f"{name}: steps to loss {CUT}, CDAT"] = own[1]
        found[f"{name}: loss at the end, best constant rate"] = min(r[0] for r in runs)
        found[f"{name}: loss at the end, CDAT"] = own[0]
    return found


def wins(found: Values) -> str:
    """Where CDAT needs fewer steps, and where fewer gradients, than the best constant rate."""
    median = lambda key: statistics.median(found[key])
    steps, gradients = [], []
    for name in SETTINGS:
        best = median(f"{name}: steps to loss {CUT}, best constant rate")
        own = median(f"{name}: steps to loss {CUT}, CDAT")
        steps += [name] if own < best else []
        gradients += [name] if Cdat.cost * own < best else []
    told = f"fewer steps: {'; '.join(steps) or 'nowhere'}"
    return f"{told}. Fewer gradients: {'; '.join(gradients) or 'nowhere'}"


EXPERIMENTS = (
    Experiment(
        name="CDAT",
        claim="a learning rate kept at the edge by the curvature along the update beats tuned "
        "constant rates in full batch; with mini-batches the picture is confounded",
        paper="Roulet et al. 2024, arXiv 2407.06183",
        reference="wins in full batch",
        note=f"best of constant rates {', '.join(map(str, RATES))}, chosen afterwards for each "
        "seed; a step of CDAT costs 2.5 gradients; 1,437 digits, 200 steps",
        runs=(cdat,),
        judge=wins,
    ),
)
