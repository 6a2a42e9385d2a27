"""Claim: what a Hessian product is off by in float32, and under bfloat16 autocast.

Relative to the product in float64, |Hv - H64 v| / |H64 v|, along a random vector and along H64 v,
which is what a Lanczos chain comes to multiply. TF32 is on tensor cores only and not measured.

    python benchmarks/hvp_precision.py
"""

import torch
from curvature_models import NAMES, Problem, problem
from environment import store
from timing import begin
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqtoolbox.linalg import hessian
from eqtoolbox.linalg.vectors import Vector, add, norm, random_like


def errors(p: Problem) -> dict[str, float]:
    """Relative error of a product by precision and vector."""
    params = {n: x.detach() for n, x in p.params().items()}
    x, y = p.batch
    x = x.double() if x.is_floating_point() else x

    def fine(q: dict[str, Tensor]) -> Tensor:
        return p.criterion(functional_call(p.model, q, x), y)

    def coarse(q: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return p.loss(q)

    exact = hessian(fine, _double(params))
    v = random_like(params, torch.Generator().manual_seed(1))
    first = exact(_double(v))
    along = {n: (x / norm(first)).float() for n, x in first.items()}
    found = {}
    for precision, loss in (("float32", p.loss), ("bfloat16 autocast", coarse)):
        H = hessian(loss, params, accuracy=0.5)
        for name, u in (("random", v), ("along Hv", along)):
            want = exact(_double(u))
            found[f"{precision}, {name}"] = norm(add(_double(H(u)), want, -1.0)) / norm(want)
    return found


def _double(v: Vector) -> dict[str, Tensor]:
    return {n: x.double() for n, x in v.items()}


def main() -> None:
    machine, results = begin(), {}
    for name in NAMES:
        with sdpa_kernel(SDPBackend.MATH):
            results[name] = errors(problem(name))
        said = ", ".join(f"{kind} {error:.1e}" for kind, error in results[name].items())
        print(f"{name:14s} {said}", flush=True)
    print(store("hvp_precision", {"machine": machine, "errors": results}))


if __name__ == "__main__":
    main()
