"""Claim: the tracker follows the sharpness of every SGD step for three products, within its bound.

The Hessian is that of one fixed probe batch while training goes on with other batches; every
tracked value is compared with a converged eigsh on the same graph. Counted are the steps after the
first 16, deep updates included. The claim is for the steady state, here a tenth of the learning
rate that the problem was trained at; the wild regime at the full rate, where the sharpness jumps
by a quarter of itself every step, is measured too.

    python benchmarks/tracking.py
"""

import statistics
from itertools import pairwise
from typing import Any

from curvature_models import problem
from environment import store
from rivals import arpack, flat, unflat
from timing import begin
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqtoolbox.linalg import Tracker, hessian

WARM, STEPS = 12, 60
ROUNDING = 5e-5  # relative; what float32 products leave uncertain in value and reference


def tracked(name: str, slower: float) -> dict[str, Any]:
    """Every step's value, bound, status, products and true error."""
    p, tracker = problem(name), Tracker()
    params = list(p.model.parameters())
    rows = []
    for _ in range(WARM + STEPS):
        with sdpa_kernel(SDPBackend.MATH), hessian(p.loss, p.params()) as H:
            found = tracker.update(H)

            def product(v: Tensor, H: Any = H) -> Tensor:
                parts = dict(zip(p.params(), unflat(v, params), strict=True))
                return flat(list(H(parts).values()))

            exact = arpack(product, p.size, 1, tol=1e-3, ncv=8).values[0]
        rows.append(
            {
                "value": found.value,
                "exact": exact,
                "bound": found.bound,
                "status": found.status,
                "products": found.matvecs,
                "deep": found.deep,
            }
        )
        p.train(1, lr=p.lr / slower)
    return {"rows": rows, **_summary(rows[WARM:])}


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [(r["exact"] - r["value"]) / abs(r["exact"]) for r in rows]
    ratios = [
        abs(r["exact"] - r["value"]) / (r["bound"] + ROUNDING * r["exact"])
        for r in rows
        if r["status"] == "ok"
    ]
    moves = [abs(b["exact"] / a["exact"] - 1) for a, b in pairwise(rows)]
    return {
        "products_per_step": statistics.mean(r["products"] for r in rows),
        "within_1_percent": statistics.mean(abs(e) <= 0.01 for e in errors),
        "worst_error": max(map(abs, errors)),
        "ok_share": statistics.mean(r["status"] == "ok" for r in rows),
        "ok_outside_bound": sum(ratio > 1 for ratio in ratios),
        "worst_over_bound": max(ratios, default=0.0),
        "ok_beyond_1_percent": sum(
            r["status"] == "ok" and abs(e) > 0.01 for r, e in zip(rows, errors, strict=True)
        ),
        "median_move_per_step": statistics.median(moves),
        "deep_updates": sum(r["deep"] for r in rows),
    }


def main() -> None:
    machine, results = begin(), {}
    for regime, slower in (("steady", 10.0), ("wild", 1.0)):
        for name in ("resnet-small", "gpt-small"):
            found = results[f"{name}, {regime}"] = tracked(name, slower)
            show(f"{name}, {regime}", found)
    print(store("tracking", {"machine": machine, "steps": STEPS, "problems": results}))


def show(name: str, found: dict[str, Any]) -> None:
    print(f"{name} (sharpness moves {found['median_move_per_step']:.1%} a step)")
    print(
        f"  {found['products_per_step']:.2f} products a step, {found['deep_updates']} deep updates"
    )
    print(f"  {found['within_1_percent']:.1%} within 1 %, worst {found['worst_error']:.2%}")
    print(
        f"  {found['ok_share']:.0%} ok; of these {found['ok_outside_bound']} outside the bound",
        end="",
    )
    print(
        f" (by {found['worst_over_bound']:.1f} x), {found['ok_beyond_1_percent']} off by over 1 %"
    )


if __name__ == "__main__":
    main()
