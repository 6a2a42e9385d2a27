"""Claim: 99.5 % of the tracker's "ok" values and more are within their own bound.

MLP, ResNet and GPT are trained by SGD, momentum and Adam at four rates, at which the sharpness
moves by about 0.1 to 30 % a step, seen on a fixed batch and on fresh ones. At every step the dense
Hessian gives the true largest eigenvalue; the tracker sees the same matrix as an operator, so that
nothing but its own doing lies between value and truth. Three trackers follow every training, with
random vectors of their own. The problems are those of the tests, larger and longer.

    python benchmarks/tracking_bound.py
"""

import sys
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from environment import store
from timing import begin
from torch import Tensor

from eqtoolbox.linalg import MatrixOperator, TrackedValue, Tracker

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.linalg.trainings import MODELS, OPTIMIZERS, RATES, hessians

STEPS, WIDTH, TRACKERS = 40, 7, 3
ROUNDING = 1e-9  # relative; of float64 products


@dataclass
class Tally:
    """Counts over values; moves of the sharpness in one step."""

    values: int = 0
    ok: int = 0
    outside: int = 0
    beyond: int = 0  # ok, and yet off by more than 1 %
    products: int = 0
    worst: float = 0.0  # error over bound
    moves: list[float] = field(default_factory=list)

    def add(self, found: TrackedValue, exact: float) -> None:
        error = exact - found.value
        self.values, self.products = self.values + 1, self.products + found.matvecs
        if found.status == "ok":
            self.ok += 1
            self.beyond += error > 0.01 * exact
            self.outside += error > found.bound + ROUNDING * exact
            self.worst = max(self.worst, error / (found.bound + ROUNDING * exact))

    def merge(self, other: "Tally") -> None:
        for name in ("values", "ok", "outside", "beyond", "products"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.worst, self.moves = max(self.worst, other.worst), self.moves + other.moves

    def row(self) -> dict[str, Any]:
        return {
            "values": self.values,
            "ok_share": self.ok / self.values,
            "ok_outside_bound": self.outside,
            "covered": 1 - self.outside / max(self.ok, 1),
            "ok_beyond_1_percent": self.beyond,
            "worst_error_over_bound": self.worst,
            "products_per_step": self.products / self.values,
            "median_move_per_step": median(self.moves),
        }


def followed(matrices: list[Tensor]) -> Tally:
    """What all trackers found along one training."""
    tally = Tally()
    exact = [float(torch.linalg.eigvalsh(h)[-1]) for h in matrices]
    tally.moves = [abs(b / a - 1) for a, b in pairwise(exact)]
    for seed in range(TRACKERS):
        tracker = Tracker(seed=seed)
        for h, top in zip(matrices, exact, strict=True):
            tally.add(tracker.update(MatrixOperator(h)), top)
    return tally


def main() -> None:
    machine, total = begin(), Tally()
    rows: dict[str, Any] = {}
    for seed, (model, optimizer) in enumerate(product(MODELS, OPTIMIZERS)):
        for rate, fresh in product(RATES[optimizer], (False, True)):
            given = {"steps": STEPS, "width": WIDTH, "seed": seed, "fresh": fresh}
            found = followed(list(hessians(model, optimizer, rate, **given)))
            name = f"{model}, {optimizer} at {rate:g}, {'fresh' if fresh else 'fixed'}"
            rows[name] = found.row()
            total.merge(found)
            show(name, rows[name])
    rows["all"] = total.row()
    show("all", rows["all"])
    print(store("tracking_bound", {"machine": machine, "steps": STEPS, "trainings": rows}))


def show(name: str, row: dict[str, Any]) -> None:
    print(f"{name:32s} moves {row['median_move_per_step']:6.2%}", end=" ")
    print(f"{row['products_per_step']:5.2f} products a step, {row['ok_share']:4.0%} ok,", end=" ")
    print(
        f"{row['ok_outside_bound']} outside their bound ({row['covered']:.2%} covered)", flush=True
    )


if __name__ == "__main__":
    main()
