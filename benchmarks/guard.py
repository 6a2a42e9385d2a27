"""Trains digits at rates from right to hopeless: plain, clipped, and with a guard.

python benchmarks/guard.py     a table and benchmarks/results/guard.json; six minutes
"""

import itertools
import math
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from environment import store
from torch import nn

import eqtoolbox as eq
from eqtoolbox import act
from eqtoolbox.demos.digits import load_digits
from eqtoolbox.probes import Tracking

STEPS, LOST = 200, 1e3
NETWORKS = {"relu": (2, nn.ReLU), "tanh": (4, nn.Tanh)}
PLAIN = {"plain": (0.3, 1.0, 2.0, 4.0, 8.0), "clip": (1.0, 8.0)}
CAPPED = (1.0, 8.0, 50.0)


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    depth, layer = NETWORKS[kind]
    widths = (64, *(64,) * depth)
    hidden = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), layer())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))


def run(kind: str, lr: float, way: str, batch: int, every: int = 1) -> dict[str, Any]:
    """One training; `way` is plain, clip (the gradient's norm at 1), warn or cap."""
    (x, y), (test_x, test_y) = load_digits().train, load_digits().test
    model, losses, held, monitor = network(kind), [], None, None
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss_fn = lambda m, b: F.cross_entropy(m(b[0]), b[1])
    draw, began = torch.Generator().manual_seed(5), time.process_time()
    if way in ("warn", "cap"):
        monitor = eq.attach(model, optimizer, probes=[Tracking()], schedule=every, budget=None)
        loss_fn, held = monitor.loss(loss_fn), act.guard(monitor, do=way)
    for _ in range(STEPS):
        chosen = torch.randint(len(x), (batch,), generator=draw) if batch else slice(None)
        loss = loss_fn(model, (x[chosen], y[chosen]))
        losses.append(float(loss.detach()))
        if not losses[-1] < LOST:
            break
        optimizer.zero_grad()
        loss.backward()
        if way == "clip":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    if monitor is not None:
        monitor.close()
    grown = next((t for t, v in enumerate(losses) if not v < 1.5 * losses[0]), None)
    with torch.no_grad():
        last = float(F.cross_entropy(model(x), y))
        test = float((model(test_x).argmax(1) == test_y).float().mean())
    return {
        "network": kind,
        "batch": batch or "full",
        "way": way,
        "lr": lr,
        "measured_every": every if held else None,
        "steps": len(losses),
        "loss": round(last, 4) if math.isfinite(last) else "lost",
        "test": round(test, 4),
        "largest": round(max(losses), 2) if math.isfinite(max(losses)) else "lost",
        "named": held.seen.past if held else None,  # the first measured step past the edge
        "grown": grown,  # the first step whose loss was half as large again as the first
        "capped": held.seen.capped if held else None,
        "seconds": round(time.process_time() - began, 1),
    }


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for kind, batch in itertools.product(NETWORKS, (0, 64, 8)):
        ways = [(way, lr, 1) for way, rates in PLAIN.items() for lr in rates]
        ways += [("cap", lr, 1) for lr in CAPPED]
        ways += [("cap", 50.0, every) for every in (2, 5, 20)]  # by a stale measurement
        if not batch:
            ways += [("warn", lr, 1) for lr in (2.0, 4.0, 8.0)]
        for way, lr, every in ways:
            rows.append(run(kind, lr, way, batch, every))
            print(rows[-1], flush=True)
    store("guard", rows)


if __name__ == "__main__":
    main()
