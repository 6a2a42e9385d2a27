"""Claim: one exact Hessian product costs what its floating point operations cost.

Of the ways to a product (on a retained graph, on one rebuilt each time, forward over reverse) the
cheapest is compared: which it is depends on hardware and model, and a run's self-test times them.
Compiled products, which a run has on request, are compared with those on the retained graph.
Costs are in gradients of the same batch, interleaved in one process. Every tool runs attention on
the mathematical kernel, the only one with a second derivative, and so does the gradient; what the
gradient costs with the default kernel is shown too.

    python benchmarks/hvp_cost.py
"""

from typing import Any

import torch
from curvature_models import NAMES, Problem, problem
from environment import store
from rivals import installed, products
from timing import begin, interleaved, timed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eqtoolbox.linalg import hessian
from eqtoolbox.linalg.product_program import ProductProgram
from eqtoolbox.linalg.vectors import random_like

SECONDS = 20.0  # about, per problem
# gradients per product in floating point operations: 2, less where a first layer is a large share
FLOP_FLOOR = {"mlp-small": 1.76, "mlp": 1.5, "resnet": 2.06, "gpt": 2.0}


def measured(p: Problem, found: list[str]) -> dict[str, Any]:
    """Cost of each tool's product, and the operations of ours, in gradients."""
    default = p.gradient

    def gradient() -> object:
        with sdpa_kernel(SDPBackend.MATH):
            return p.gradient()

    with sdpa_kernel(SDPBackend.MATH):
        H = hessian(p.loss, p.params())
        rebuilt = hessian(p.loss, p.params(), retain=False)
        forward = hessian(p.loss, p.params(), forward=True)
        v = random_like(p.params(), torch.Generator().manual_seed(1))
        H(v)
        cases = {"gradient": gradient, "eqtoolbox": lambda: H(v), **products(p, found)}
        cases["eqtoolbox, rebuilt"] = lambda: rebuilt(v)
        cases["eqtoolbox, forward"] = lambda: forward(v)
        seconds, program = timed(lambda: ProductProgram(p.loss, p.params(), v, p.batch))
        compiled = program.at(p.params(), p.batch)
        cases["compiled"] = lambda: compiled(v)
        flops = {"product": _flops(lambda: H(v)) / _flops(p.gradient)}
        once = interleaved(cases, repeats=1).rounds
        repeats = max(9, min(99, int(SECONDS / sum(t[0] for t in once.values()))))
        times = interleaved(cases, repeats=repeats, warmup=0)
    kernels = interleaved({"default": default, "math": gradient}, repeats=repeats)
    cost = {name: times.ratio(name, "gradient") for name in cases if name != "gradient"}
    rivals = {name: cost[name] for name in found}
    ways = [name for name in cost if name.startswith("eqtoolbox")]
    own = min(ways, key=lambda name: cost[name])  # what a self-test chooses by timing
    floor = FLOP_FLOOR.get(p.name) or FLOP_FLOOR[p.name.removesuffix("-small")]
    cheapest = min(rivals, key=lambda name: rivals[name]) if rivals else None
    return {
        "parameters": p.size,
        "repeats": repeats,
        "gradient_ms": 1e3 * times.seconds("gradient"),
        "default_kernel_gradient": kernels.ratio("default", "math"),
        "cost_in_gradients": cost,
        "flops_in_gradients": flops["product"],
        "cheapest_way": own,
        "cheapest_rival": cheapest,
        "over_cheapest_rival": times.ratio(own, cheapest) if cheapest else None,
        "over_flop_floor": cost[own] / floor,
        "compiled_over_eager": times.ratio("compiled", "eqtoolbox"),
        "seconds_to_compile": seconds,
    }


def _flops(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def main() -> None:
    machine = begin()
    versions = installed()
    results = {}
    print(f"{'gradients per product':14s} {'n':>8s} {'ours':>6s} {'flops':>6s}", end=" ")
    print(" ".join(f"{name:>20s}" for name in versions), "  /rival  /floor")
    for name in NAMES:
        row = measured(problem(name), list(versions))
        results[name] = row
        cost = row["cost_in_gradients"]
        print(f"{name:14s} {row['parameters']:15d}", end=" ")
        print(f"{cost['eqtoolbox']:6.2f} {row['flops_in_gradients']:6.2f}", end=" ")
        print(" ".join(f"{cost[rival]:20.2f}" for rival in versions), end=" ")
        over = row["over_cheapest_rival"]
        print(f"{over or float('nan'):8.2f} {row['over_flop_floor']:7.2f}", end=" ")
        ways = {name: c for name, c in cost.items() if name.startswith("eqtoolbox, ")}
        print(", ".join(f"{name[11:]} {c:.2f}" for name, c in ways.items()), end=", ")
        print(
            f"compiled {cost['compiled']:.2f}, {row['compiled_over_eager']:.2f} of eager",
            flush=True,
        )
    print(store("hvp_cost", {"machine": machine, "rivals": versions, "problems": results}))


if __name__ == "__main__":
    main()
