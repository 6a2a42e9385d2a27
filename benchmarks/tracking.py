"""Claim: every value of the tracker is within its bound, for a few products at a slow pace.

The Hessian is that of one fixed probe batch while training goes on with other batches; every
tracked value is compared with a converged eigsh on the same graph. Counted are the steps after the
first 12, deep updates included. Steady is a tenth of the learning rate that the problem was trained
at; wild is the full rate, where the sharpness jumps by a quarter of itself every step.

    python benchmarks/tracking.py
"""

import statistics
from functools import partial
from itertools import pairwise
from typing import Any

from curvature_models import Problem, problem
from environment import store
from rivals import arpack, flat, unflat
from timing import begin
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqtoolbox.linalg import TrackedValue, Tracker, hessian
from eqtoolbox.linalg.curvature import Hessian

WARM, STEPS = 12, 60
SETTINGS: dict[str, dict[str, float]] = {"default": {}, "rtol=0.005": {"rtol": 0.005}}
ROUNDING = 5e-5  # relative; what float32 products leave uncertain in value and reference


def tracked(name: str, slower: float) -> dict[str, Any]:
    """What every setting of the tracker found along one training run."""
    p, columns = problem(name), {setting: list[TrackedValue]() for setting in SETTINGS}
    trackers = {s: Tracker(**options) for s, options in SETTINGS.items()}
    exact = []
    for _ in range(WARM + STEPS):
        with sdpa_kernel(SDPBackend.MATH), hessian(p.loss, p.params()) as H:
            for setting, tracker in trackers.items():
                columns[setting].append(tracker.update(H))
            product = partial(_flat_product, H, p)
            exact.append(arpack(product, p.size, 1, tol=1e-3, ncv=8).values[0])
        p.train(1, lr=p.lr / slower)
    moves = [abs(b / a - 1) for a, b in pairwise(exact[WARM:])]
    return {
        "median_move_per_step": statistics.median(moves),
        "exact": [round(x, 5) for x in exact],
        **{s: _summary(found[WARM:], exact[WARM:]) for s, found in columns.items()},
    }


def _flat_product(H: Hessian, p: Problem, v: Tensor) -> Tensor:
    params = p.params()
    parts = dict(zip(params, unflat(v, list(params.values())), strict=True))
    product = H(parts)
    return flat([product[name] for name in params])


def _summary(found: list[TrackedValue], exact: list[float]) -> dict[str, Any]:
    errors = [abs(x - f.value) / abs(x) for f, x in zip(found, exact, strict=True)]
    beyond = [
        e / (f.bound / abs(x) + ROUNDING)
        for e, f, x in zip(errors, found, exact, strict=True)
        if f.status == "ok"
    ]
    wrong = [e > 0.01 and f.status == "ok" for e, f in zip(errors, found, strict=True)]
    return {
        "products_per_step": statistics.mean(f.matvecs for f in found),
        "within_1_percent": statistics.mean(e <= 0.01 for e in errors),
        "worst_error": max(errors),
        "ok_share": statistics.mean(f.status == "ok" for f in found),
        "ok_outside_bound": sum(ratio > 1 for ratio in beyond),
        "worst_over_bound": max(beyond, default=0.0),
        "ok_beyond_1_percent": sum(wrong),
        "deep_updates": sum(f.deep for f in found),
    }


def main() -> None:
    machine, results = begin(), {}
    for regime, slower in (("steady", 10.0), ("wild", 1.0)):
        for name in ("resnet-small", "gpt-small"):
            found = results[f"{name}, {regime}"] = tracked(name, slower)
            print(f"{name}, {regime}: moves {found['median_move_per_step']:.1%} a step")
            for setting in SETTINGS:
                show(setting, found[setting])
    print(store("tracking", {"machine": machine, "steps": STEPS, "problems": results}))


def show(setting: str, row: dict[str, Any]) -> None:
    print(f"  {setting:10s} {row['products_per_step']:.2f} products a step,", end=" ")
    print(f"{row['within_1_percent']:.1%} within 1 % (worst {row['worst_error']:.2%}),", end=" ")
    print(f"{row['ok_share']:.0%} ok, of these {row['ok_outside_bound']} beyond the bound", end=" ")
    print(f"(error / bound at most {row['worst_over_bound']:.1f})", flush=True)


if __name__ == "__main__":
    main()
