"""Claim: what is enforced while it trains is exact, and accurate where plain training fails.

Digits are trained upright and judged upright and under a random quarter turn each; the two-arm
robot is judged by its torques. A row is a method: add one to METHODS. Costs are those of the
result's report, and process times within a round, as ratios to the plain model's.

    OMP_NUM_THREADS=1 python benchmarks/enforced.py [METHOD ...]
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from environment import store
from timing import interleaved
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.demos.digits import load_digits
from eqtoolbox.demos.robot import MIRROR, PlainArm
from eqtoolbox.demos.robot import load as load_robot
from eqtoolbox.demos.rotated import TURNS
from eqtoolbox.symmetry import Equivariance, equivariance_error
from eqtoolbox.symmetry.actions import quarter_turn

Batch = tuple[Tensor, Tensor]
SEEDS = (0, 1, 2)


def unchanged(model: nn.Module, claim: Equivariance, sample: Tensor) -> nn.Module:
    """The model itself."""
    return model


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is done to the model before it trains, to its batches and its loss, and afterwards."""

    before: Callable[[nn.Module, Equivariance, Tensor], nn.Module] = unchanged
    after: Callable[[nn.Module, Equivariance, Tensor], nn.Module] = unchanged
    augment: bool = False
    penalty: Callable[[Equivariance], Callable[[nn.Module, Tensor, Tensor], Tensor]] | None = None
    equal: bool = False  # as wide as a tied model with the plain one's number of free weights


def fixed_score(model: nn.Module, claim: Equivariance, sample: Tensor) -> nn.Module:
    """Canonicalised by a score that is drawn once and does not learn."""
    score = eq.enforce.canonicalised(model, claim).score
    return eq.enforce.canonicalised(model, claim, score.requires_grad_(False), sample)


def tied(model: nn.Module, claim: Equivariance, sample: Tensor) -> nn.Module:
    """With weights tied."""
    return eq.enforce.tied(model, claim, sample)


METHODS: dict[str, Method] = {
    "plain": Method(),
    "augmented": Method(augment=True),
    "averaged": Method(before=lambda m, c, x: eq.enforce.averaged(m, c, x)),
    "averaged after training": Method(after=lambda m, c, x: eq.enforce.averaged(m, c, x)),
    "canonicalised": Method(before=lambda m, c, x: eq.enforce.canonicalised(m, c, None, x)),
    "canonicalised, fixed score": Method(before=fixed_score),
    "tied": Method(before=tied, after=lambda m, c, x: m.export()),
    "tied at equal weights": Method(before=tied, after=lambda m, c, x: m.export(), equal=True),
    "tied after training": Method(after=lambda m, c, x: tied(m, c, x).export()),
    "plain of that width": Method(equal=True),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A problem with a symmetry: its data, its model, how that trains and how it is judged."""

    claim: Equivariance
    train: Batch
    judged: Mapping[str, Batch]
    model: Callable[[float], nn.Module]  # of a factor of its width
    equal: float  # the factor by which a tied model has as many free weights, `Tied.widen`
    optimizer: Callable[[Any], torch.optim.Optimizer]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    steps: int
    anneal: bool = False


def digit_net(wider: float) -> nn.Module:
    """Two convolutions of 16 and 32 channels, a hidden layer of 64."""
    w = round(4 * wider) * 4
    return nn.Sequential(
        nn.Conv2d(1, w, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(w, 2 * w, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8 * w, 4 * w), nn.ReLU(), nn.Linear(4 * w, 10),
    )  # fmt: skip


def digits() -> Task:
    """300 steps on upright digits."""
    data = load_digits()
    images, labels = data.test
    turns = torch.randint(4, (len(labels),), generator=torch.Generator().manual_seed(1))
    turned = torch.stack([quarter_turn(int(k), x) for k, x in zip(turns, images, strict=True)])
    return Task(
        claim=TURNS,
        train=data.train,
        judged={"upright": data.test, "turned": (turned, labels)},
        model=digit_net,
        equal=2.03,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
        loss=F.cross_entropy,
        score=lambda y, t: float((y.argmax(1) == t).double().mean()),
        steps=300,
    )


def robot() -> Task:
    """1000 steps on 256 states of the two-arm robot; the score is the relative torque error."""
    data = load_robot()
    return Task(
        claim=MIRROR,
        train=data.train,
        judged={"torque error": data.test},
        model=lambda wider: PlainArm(2 * round(32 * wider)),
        equal=1.47,
        optimizer=lambda p: torch.optim.Adam(p, lr=3e-3),
        loss=F.mse_loss,
        score=lambda y, t: float((y - t).norm() / t.norm()),
        steps=1000,
        anneal=True,
    )


TASKS = {"digits": digits, "robot": robot}


def augmented(task: Task, x: Tensor, y: Tensor, rng: torch.Generator) -> Batch:
    """Every sample moved by an element of its own."""
    elements = list(task.claim.group.elements())
    drawn = torch.randint(len(elements), (len(x),), generator=rng)
    x, y = x.clone(), y.clone()
    for k, g in enumerate(elements):
        rows = drawn == k
        x[rows] = task.claim.input_action(g, x[rows])
        if y.is_floating_point():
            y[rows] = task.claim.output_action(g, y[rows])
    return x, y


def training(task: Task, method: Method, seed: int) -> tuple[nn.Module, Iterator[None]]:
    """A model and its steps."""
    torch.manual_seed(seed)
    model = task.model(task.equal if method.equal else 1.0)
    model = method.before(model, task.claim, task.train[0][:8]).train()
    optimizer = task.optimizer([p for p in model.parameters() if p.requires_grad])
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps)
    penalty = None if method.penalty is None else method.penalty(task.claim)
    rng = torch.Generator().manual_seed(seed + 9)
    samples = len(task.train[0])

    def steps() -> Iterator[None]:
        for _ in range(task.steps):
            rows = torch.randint(samples, (64,), generator=rng)
            x, y = task.train[0][rows], task.train[1][rows]
            if method.augment:
                x, y = augmented(task, x, y, rng)
            loss = task.loss(model(x), y)
            if penalty is not None:
                loss = loss + penalty(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if task.anneal:
                plan.step()
            yield

    return model, steps()


@torch.no_grad()
def judged(task: Task, method: Method, model: nn.Module) -> tuple[nn.Module, dict[str, float]]:
    """The model in evaluation mode, and its scores."""
    model = method.after(model.eval(), task.claim, task.train[0][:8]).eval()
    found = {name: task.score(model(x), y) for name, (x, y) in task.judged.items()}
    x = next(iter(task.judged.values()))[0][:128]
    error = equivariance_error(model, x, task.claim)
    return model, found | {"relative error": error.relative_error, "floor": error.floor}


def rows(task: Task, names: list[str]) -> dict[str, dict[str, Any]]:
    """Scores of every method over the seeds, and what it costs."""
    table: dict[str, dict[str, Any]] = {}
    answering: dict[str, Callable[[], object]] = {}
    for name in names:
        method, found = METHODS[name], []
        for seed in SEEDS:
            model, steps = training(task, method, seed)
            for _ in steps:
                pass
            model, scores = judged(task, method, model)
            found.append(scores)
        report = getattr(model, "report", None)
        table[name] = {
            "forwards a call": getattr(report, "forwards", 1),
            "scores a call": getattr(report, "scores", 0),
            **{k: statistics.mean(f[k] for f in found) for k in found[0]},
            "each seed": [{k: f[k] for k in task.judged} for f in found],
        }
        answering[name] = forward(model, next(iter(task.judged.values()))[0])
        print(name, table[name], flush=True)
    if "plain" in names:
        times = interleaved({n: epoch(task, METHODS[n]) for n in names}, repeats=5, warmup=1)
        calls = interleaved(answering, repeats=9)
        for name in names:
            table[name]["a step x"] = times.ratio(name, "plain")
            table[name]["a call x"] = calls.ratio(name, "plain")
    return table


def epoch(task: Task, method: Method) -> Callable[[], object]:
    """Twenty steps of a training that goes on."""
    _, steps = training(task, method, 0)
    return lambda: [next(steps) for _ in range(20)]


@torch.no_grad()
def forward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """One call without gradients."""

    def call() -> object:
        with torch.no_grad():
            return model(x)

    return call


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(METHODS)
    found = {name: rows(task(), chosen) for name, task in TASKS.items()}
    if not sys.argv[1:]:
        print(store("enforced", found))
