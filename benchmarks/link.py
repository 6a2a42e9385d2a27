"""Is an equivariance error linked with accuracy and speed? On data with and without.

Claim: where labels do not mind quarter turns, networks with less equivariance error test better and
generalise better. On upright digits, where the turn is information, the sign turns round among
networks that are augmented more or less, and is gone where the symmetry is built in. Of speed there
is no rule: what the sign is depends on the rate. Among plain networks with other rates and decays
an equivariance error says nothing of accuracy.

A perceptron learns 400 digits, upright or each turned once at random, and is helped to the symmetry
or not: plain; a quarter, half or all of each batch turned anew; and built in, exactly: averaged
over the turns, or with tied weights, as wide or with as many of them free. Each has the rate, of
four, with the least loss on 400 digits held out. Spearman's rank correlation of the equivariance
error, zero where it is rounding, with each outcome; the interval is that of 2,000 bootstrap samples
of the runs, and of fewer than 10 runs none is told.

    python benchmarks/link.py [seeds]
"""

import itertools
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from environment import store
from experiments import Figures, accuracy, digits, in_processes, mean, perceptron
from scipy.stats import rankdata
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.symmetry import Cyclic, Equivariance, actions, equivariance_error

TURNS = Equivariance(Cyclic(4), actions.quarter_turn, actions.trivial)
SEEDS, SAMPLES, BATCH, STEPS = 16, 400, 64, 400
FIT = 0.3  # training loss to reach
FEWEST = 10  # runs of which a correlation is told
DRAWS = 2000
LEVELS = {"plain": 0.0, "¼ turned": 0.25, "½ turned": 0.5, "all turned": 1.0}  # share turned
BUILT = ("averaged", "tied", "tied, equal weights")  # exactly invariant
RATES = (0.03, 0.05, 0.1, 0.2)
FASTEST = "steps at the fastest rate"
OUTCOMES = ("test accuracy", "generalisation gap", "loss gap", "steps to fit", FASTEST)
Runs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How one network is trained."""

    level: str  # of help to the symmetry
    symmetric: bool  # whether every digit of the data is turned at random
    seed: int
    lr: float = 0.1
    decay: float = 1e-4


def turned(images: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """A share of the images, drawn by chance, under a random quarter turn each."""
    turn = torch.randint(4, (len(images),), generator=rng)
    chosen = torch.rand(len(images), generator=rng) < share
    found = images.clone()
    for k in range(1, 4):
        rows = chosen & (turn == k)
        found[rows] = actions.quarter_turn(k, images[rows])
    return found


def network(way: Way) -> nn.Module:
    """A perceptron, or one that is made invariant, of as many free weights where said so."""
    width = 156 if "equal" in way.level else 64
    model = perceptron((64, width, width, 10), nn.ReLU, way.seed)
    if way.level == "averaged":
        return eq.enforce.averaged(model, TURNS)
    return eq.enforce.tied(model, TURNS, digits()[0][0][:4]) if way.level in BUILT else model


def run(way: Way, steps: int = STEPS) -> Figures:
    """Equivariance error and outcomes of one training."""
    (images, labels), (others, answers) = digits()
    if way.symmetric:
        once = torch.Generator().manual_seed(1)
        images, others = turned(images, 1.0, once), turned(others, 1.0, once)
    held = images[SAMPLES : 2 * SAMPLES], labels[SAMPLES : 2 * SAMPLES]
    images, labels = images[:SAMPLES], labels[:SAMPLES]
    model = network(way)
    optimizer = torch.optim.SGD(model.parameters(), way.lr, momentum=0.9, weight_decay=way.decay)
    rng, fit = torch.Generator().manual_seed(way.seed + 1), math.inf
    for step in range(1, steps + 1):
        rows = torch.randint(SAMPLES, (BATCH,), generator=rng)
        batch = turned(images[rows], LEVELS.get(way.level, 0.0), rng)
        optimizer.zero_grad()
        F.cross_entropy(model(batch), labels[rows]).backward()
        optimizer.step()
        if step % 5 == 0 and fit > steps:
            with torch.no_grad():
                now = float(F.cross_entropy(model(images), labels))
            fit = step if now < FIT else math.inf
    with torch.no_grad():
        sets = (images, labels), (others, answers), held
        losses = [float(F.cross_entropy(model(x), y)) for x, y in sets]
    test = accuracy(model, (others, answers))
    error = equivariance_error(model, others[:128], TURNS)
    return {
        "equivariance error": error.relative_error if error.verdict == "violated" else 0.0,
        "test accuracy": test,
        "generalisation gap": accuracy(model, (images, labels)) - test,
        "loss gap": losses[1] - losses[0],
        "steps to fit": min(fit, steps + 1),
        "held-out loss": losses[2] if math.isfinite(losses[2]) else math.inf,
    }


def tuned(runs: Runs) -> list[Mapping[str, Any]]:
    """Runs of each level at the rate with the least held-out loss, and their steps at the fastest.

    Both rates are those of the mean over seeds.
    """
    found: list[Mapping[str, Any]] = []
    for level in (*LEVELS, *BUILT):
        by_rate = {lr: [r for r in runs if (r["level"], r["rate"]) == (level, lr)] for lr in RATES}
        least = lambda key, by_rate=by_rate: min(
            by_rate.values(), key=lambda of: mean([r[key] for r in of])
        )
        pairs = zip(least("held-out loss"), least("steps to fit"), strict=True)
        found += [{**best, FASTEST: fast["steps to fit"]} for best, fast in pairs]
    return found


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; NaN where one of them is constant."""
    a, b = rankdata(x), rankdata(y)
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else math.nan


def correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, Any] | None:
    """Spearman's correlation with a bootstrap interval of 95 %; None of too few runs."""
    if len(x) < FEWEST:
        return None
    one, two, rng = np.array(x), np.array(y), np.random.default_rng(0)
    drawn = [spearman(one[i], two[i]) for i in rng.integers(len(x), size=(DRAWS, len(x)))]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return {"rho": spearman(one, two), "interval": [float(low), float(high)], "runs": len(x)}


def within(runs: Runs, key: str) -> list[float]:
    """Values less the mean of their level: what differs among runs of one way of training."""
    levels = {r["level"] for r in runs}
    means = {level: mean([r[key] for r in runs if r["level"] == level]) for level in levels}
    return [r[key] - means[r["level"]] for r in runs]


def told(runs: Runs, plain: Runs) -> dict[str, Any]:
    """Means of each way of training, and the correlations within several sets of runs."""
    error = "equivariance error"
    free = [r for r in runs if r["level"] not in BUILT]
    alone = [r for r in runs if r["level"] == "plain"]
    sets = {
        "all runs": runs,
        "none built in": free,
        "plain, other seeds": alone,
        "plain, other rates and decays": plain,
    }
    link = lambda of, key: correlation([r[error] for r in of], [r[key] for r in of])
    links = {
        name: {key: link(of, key) if key in of[0] else None for key in OUTCOMES}
        for name, of in sets.items()
    }
    links["none built in, less the mean of each way"] = {
        key: correlation(within(free, error), within(free, key)) for key in OUTCOMES
    }
    of_level = {level: [r for r in runs if r["level"] == level] for level in (*LEVELS, *BUILT)}
    of_level["plain, other rates and decays"] = plain
    levels = {
        level: {key: [r.get(key) for r in of] for key in ("rate", error, *OUTCOMES)}
        for level, of in of_level.items()
    }
    return {"levels": levels, "links": links}


def ways(symmetric: bool, seeds: int) -> Iterable[Way]:
    """Every level with every rate and seed."""
    for level, lr, seed in itertools.product((*LEVELS, *BUILT), RATES, range(seeds)):
        yield Way(level=level, symmetric=symmetric, seed=seed, lr=lr)


def others(symmetric: bool, seeds: int) -> Iterable[Way]:
    """Plain trainings with other rates and decays."""
    for lr, decay, seed in itertools.product((0.03, 0.1, 0.2), (0.0, 1e-3, 1e-2), range(seeds)):
        yield Way(level="plain", symmetric=symmetric, seed=seed, lr=lr, decay=decay)


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS
    start, results = time.perf_counter(), {}
    for name, symmetric in (("with the symmetry", True), ("without", False)):
        chosen = list(ways(symmetric, seeds)), list(others(symmetric, max(2, seeds // 4)))
        found = in_processes([(run, way) for way in itertools.chain(*chosen)])
        runs = [
            {"level": w.level, "rate": w.lr, **f}
            for w, f in zip(itertools.chain(*chosen), found, strict=True)
        ]
        results[name] = told(tuned(runs[: len(chosen[0])]), runs[len(chosen[0]) :])
        print(name)
        for level, of in results[name]["levels"].items():
            values = {k: v for k, v in of.items() if None not in v}
            print(f"    {level}: " + ", ".join(f"{k} {mean(v):.3f}" for k, v in values.items()))
        for scope, links in results[name]["links"].items():
            for key, link in links.items():
                print(f"    {scope}: {key} {link}")
    seconds = round(time.perf_counter() - start)
    print(f"{seconds} s")
    if len(sys.argv) == 1:
        print(store("link", {"seconds": seconds, "data": results}))


if __name__ == "__main__":
    main()
