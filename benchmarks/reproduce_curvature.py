"""Published results about curvature, measured by the probes of an attached monitor."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from experiments import Experiment, Figures, Values, digits, mean, perceptron
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.demos.demo import batches
from eqtoolbox.probes import Curvature, Tracking
from eqtoolbox.sinks.memory import MemorySink

COHEN = "Cohen et al. 2021, arXiv 2103.00065"
GUR_ARI = "Gur-Ari et al. 2018, arXiv 1812.04754"
CLASSES = 10
Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


def squares(model: nn.Module, batch: Batch) -> Tensor:
    """Half the squared distance to the one-hot labels, mean over samples."""
    wanted = F.one_hot(batch[1], CLASSES).to(batch[0].dtype)
    return 0.5 * (model(batch[0]) - wanted).square().sum(1).mean()


def entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def watched(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    lr: float,
    track: int,
    top: int,
    probe_batch: Batch | None = None,
) -> dict[str, dict[int, float]]:
    """Curves of a run of plain SGD: the sharpness every `track` steps, all else every `top`."""
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=lr), MemorySink()
    probes = [
        eq.Scheduled(probe=Tracking(), schedule=eq.every(track)),
        eq.Scheduled(probe=Curvature(k=CLASSES, smallest=False), schedule=eq.every(top)),
    ]
    with eq.attach(
        model,
        optimizer,
        loss_fn=loss,
        probes=probes,
        probe_batch=probe_batch,
        budget=None,
        memory=None,
        sinks=[sink],
    ) as monitor:
        step_loss = monitor.loss(loss)
        for batch in batches:
            optimizer.zero_grad()
            step_loss(model, batch).backward()
            optimizer.step()
    curves: dict[str, dict[int, float]] = {}
    for record in sink.records:
        if record.status == "ok":
            curves.setdefault(record.name, {})[record.step] = record.value
    return curves


def full_batch(seed: int, lr: float, steps: int) -> dict[str, dict[int, float]]:
    """Gradient descent of the paper's kind of network, tanh and squared loss, on 512 digits."""
    images, labels = digits()[0]
    batch = (images[:512], labels[:512])
    model = perceptron((64, 100, 100, CLASSES), nn.Tanh, seed)
    steady = itertools.repeat(batch, steps)
    return watched(
        model, steady, squares, lr=lr, track=max(1, steps // 100), top=max(10, steps // 30)
    )


def edge(seed: int, steps: int = 1500, rates: Sequence[float] = (0.2, 0.1, 0.05)) -> Figures:
    """Sharpness and alignment of gradient descent, over the last third of a run."""
    found: Figures = {}
    courses = found["courses"] = {}
    for lr in rates:
        curves = full_batch(seed, lr, steps)
        sharpness, overlap = curves["tracking/sharpness"], curves["curvature/gradient_overlap"]
        late = lambda curve: mean([v for step, v in curve.items() if step >= 2 * steps // 3])
        found[f"sharpness × η/2, last third, η = {lr}"] = lr / 2 * late(sharpness)
        courses[str(lr)] = {
            "sharpness": [[step, lr / 2 * v] for step, v in sorted(sharpness.items())],
            "overlap": [[step, v] for step, v in sorted(overlap.items())],
        }
        found["gradient in the top 10, at the start"] = overlap[0]
        found[f"gradient in the top 10, last third, η = {lr}"] = late(overlap)
    values = [sharpness[step] for step in sorted(sharpness)]
    rises = [b >= a for a, b in itertools.pairwise(values)]
    found[f"sharpness at the end over that at the start, η = {lr}"] = values[-1] / values[0]
    found["share of the measurements that lie above the one before"] = mean(rises)
    return found


def alignment(seed: int, steps: int = 600) -> Figures:
    """The paper's own setting, small: cross-entropy and mini-batches."""
    train = digits()[0]
    part = (train[0][:512], train[1][:512])
    model = perceptron((64, 100, 100, CLASSES), nn.ReLU, seed)
    drawn = batches(train, 64, steps, seed)
    curves = watched(model, drawn, entropy, lr=0.1, track=steps, top=steps // 12, probe_batch=part)
    overlap = curves["curvature/gradient_overlap"]
    late = [v for step, v in overlap.items() if step >= 2 * steps // 3]
    return {"gradient in the top 10, cross-entropy, mini-batches, last third": mean(late)}


def at_the_edge(found: Values) -> str:
    """Above the threshold by less than 15 % at large rates, below it at a small one."""
    *large, small = (v for key, v in found.items() if key.startswith("sharpness × η/2"))
    sits = all(1.0 <= mean(v) <= 1.15 for v in large)
    return "reproduced" if sits and max(small) < 1 else "not reproduced"


def sharpens(found: Values) -> str:
    growth, rises = (mean(v) for v in found.values())
    return "reproduced" if growth > 1.5 and rises > 0.9 else "not reproduced"


def aligns(found: Values) -> str:
    """At the start, at the edge, below it; and with mini-batches."""
    start, first, second, below, mini = (mean(v) for v in found.values())
    if min(start, first, second, mini) < 0.5:
        return "not reproduced"
    return "reproduced" if below > 0.5 else "reproduced at the edge; not below it"


EXPERIMENTS = (
    Experiment(
        name="edge of stability",
        claim="gradient descent sharpens until the sharpness is 2/η, and hovers just above",
        paper=COHEN,
        reference="sharpness × η/2 just above 1; below 1 while η is small",
        note="tanh 64-100-100-10, squared loss, 512 digits, full batch, 1,500 steps; `Tracking`",
        runs=(edge,),
        picks=("sharpness × η/2",),
        judge=at_the_edge,
    ),
    Experiment(
        name="progressive sharpening",
        claim="until then the sharpness rises all along",
        paper=COHEN,
        reference="rises throughout",
        note="the same runs",
        runs=(edge,),
        picks=("sharpness at the end", "share of the measurements"),
        judge=sharpens,
    ),
    Experiment(
        name="gradient in the top subspace",
        claim="soon most of the gradient lies in the span of as many top Hessian eigenvectors as "
        "there are classes",
        paper=GUR_ARI,
        reference="near 1 (SGD, cross-entropy)",
        note="the same runs, and one of mini-batches (ReLU, cross-entropy, η = 0.1); `Curvature`",
        runs=(edge, alignment),
        picks=("gradient in the top 10",),
        judge=aligns,
    ),
)
