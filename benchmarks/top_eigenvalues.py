"""Claim: the top 1 and top 5 eigenvalues, right to a residual of 1e-3, at half a rival's cost.

Each answer is judged by this file, with one exact product per returned vector: right means that
every ‖Hv − λv‖ <= 1e-3·|λ_1| and every value is within 1e-3·|λ_1| of the reference in its place,
which a fully converged eigsh gave. Every rival has several settings; the cheapest right one counts,
as if its user had known it. Costs are in gradients of the same batch, measured between the solves.

    python benchmarks/top_eigenvalues.py [problem ...]
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from curvature_models import NAMES, Problem, problem
from environment import store
from rivals import (
    Spectrum,
    arpack,
    curvlinops_arpack,
    eigenthings,
    flat,
    installed,
    pyhessian,
    retained,
    unflat,
)
from timing import begin, timed
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqtoolbox.linalg import hessian, top_eigenpairs

TOL = 1e-3
BUDGET = 400.0  # gradients; a setting that took longer is run once only
Solver = Callable[[Problem, int], Spectrum]


def ours(p: Problem, k: int, **options: Any) -> Spectrum:
    """eqtoolbox, the building of the graph included."""
    with hessian(p.loss, p.params()) as H:
        found = top_eigenpairs(H, k, tol=TOL, **options)
    vectors = torch.stack([flat(list(v.values())) for v in found.vectors])
    return Spectrum(found.values.tolist(), vectors, found.matvecs, found.converged.tolist())


def solvers(k: int, found: list[str]) -> dict[str, Solver]:
    """Tools by name and setting."""
    cases: dict[str, Solver] = {"eqtoolbox": ours}
    for ncv in (None, *((6, 10) if k == 1 else (12, 16))):
        cases[f"scipy eigsh, ncv={ncv}"] = lambda p, k, ncv=ncv: arpack(
            retained(p), p.size, k, tol=TOL, ncv=ncv
        )
    if "hessian-eigenthings" in found:
        cases["hessian-eigenthings, default"] = eigenthings
        for steps in (8, 12, 16, 24) if k == 1 else (20, 30, 40, 50):
            cases[f"hessian-eigenthings, LA, max_iter={steps}"] = lambda p, k, m=steps: eigenthings(
                p, k, which="LA", max_iter=m, tol=TOL
            )
    if "pyhessian" in found:
        cases["pyhessian, default"] = pyhessian
        cases["pyhessian, tol=1e-5"] = lambda p, k: pyhessian(p, k, tol=1e-5)
    if "curvlinops" in found:
        cases["curvlinops + eigsh"] = lambda p, k: curvlinops_arpack(p, k, tol=TOL)
    return cases


def judged(p: Problem, product: Callable[[Tensor], Tensor], answer: Spectrum, truth: list[float]):
    """True residuals and errors of an answer, relative to |λ_1|, and whether it is right."""
    top, vectors = abs(truth[0]), torch.nn.functional.normalize(answer.vectors.double(), dim=1)
    residuals = []
    for value, v in zip(answer.values, vectors, strict=True):
        image = product(v.float()).double()
        residuals.append(float((image - value * v).norm()) / top)
    pairs = zip(answer.values, truth, strict=False)
    errors = [(value - exact) / top for value, exact in pairs]
    right = max(residuals) <= TOL and max(map(abs, errors)) <= TOL
    return {
        "values": answer.values,
        "residual": max(residuals),
        "error": max(errors, key=abs),
        "products": answer.products,
        "claims": answer.claims,
        "right": right,
    }


def reference(p: Problem) -> list[float]:
    """The five largest eigenvalues, fully converged, by an independent solver."""
    return arpack(retained(p), p.size, 5, tol=1e-6, ncv=40).values


def measured(p: Problem, k: int, truth: list[float], found: list[str]) -> dict[str, Any]:
    """Every tool's answer, judged, with its cost in gradients."""
    rows: dict[str, Any] = {}
    product = retained(p)
    p.gradient()
    for turn in range(3):
        for name, solve in solvers(k, found).items():
            if turn and rows[name]["costs"][0] > BUDGET / 3:
                continue
            before = [timed(p.gradient)[0] for _ in range(4)]
            try:
                seconds, answer = timed(lambda solve=solve: solve(p, k))
            except Exception as error:
                rows[name] = {"failed": f"{type(error).__name__}: {error}", "costs": [float("inf")]}
                continue
            after = [timed(p.gradient)[0] for _ in range(4)]
            cost = seconds / statistics.median(before + after)
            row = rows.setdefault(name, {"costs": [], **judged(p, product, answer, truth)})
            row["costs"].append(cost)
    for row in rows.values():
        row["gradients"] = statistics.median(row["costs"])
    return rows
