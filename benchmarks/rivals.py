"""The other libraries behind one face: products, and the top of a spectrum, as their users get it.

Imports are lazy: a library that is missing is named and left out.
    pip install hessian-eigenthings curvlinops-for-pytorch pyhessian   (torchvision: --no-deps)
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from curvature_models import Problem
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

PACKAGES = {
    "hessian-eigenthings": "hessian-eigenthings",
    "curvlinops": "curvlinops-for-pytorch",
    "pyhessian": "pyhessian",
}
Product = Callable[[Tensor], Tensor]  # flat vector -> flat vector


@dataclass
class Spectrum:
    """What a tool answered: eigenvalues, flat eigenvectors as rows, products spent."""

    values: list[float]
    vectors: Tensor  # (k, n)
    products: int
    claims: list[bool] | None = None  # the tool's own convergence flags


@dataclass
class Counted:
    """A product that counts its calls."""

    product: Callable[[Any], Any]
    calls: int = field(default=0)

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.product(*args)


def installed() -> dict[str, str]:
    """Versions of the rivals that are here; tells which are missing."""
    found = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            print(f"{name} is missing: pip install {package}")
    return found


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of several tensors."""
    return torch.cat([x.detach().reshape(-1) for x in tensors])


def unflat(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of one vector."""
    parts = vector.split([x.numel() for x in like])
    return [part.view_as(x) for part, x in zip(parts, like, strict=True)]


def retained(problem: Problem) -> Product:
    """Torch alone: the graph of one gradient, differentiated for each product."""
    params = list(problem.model.parameters())
    gradient = torch.autograd.grad(
        problem.loss_at(problem.model, problem.batch), params, create_graph=True
    )

    def product(v: Tensor) -> Tensor:
        return flat(torch.autograd.grad(gradient, params, unflat(v, params), retain_graph=True))

    return product


def eigenthings_operator(problem: Problem, **options: Any) -> Any:
    """hessian-eigenthings' operator."""
    from hessian_eigenthings import HessianOperator

    return HessianOperator(problem.model, [problem.batch], problem.loss_at, **options)


def curvlinops_operator(problem: Problem, *, check: bool = False) -> Any:
    """curvlinops' operator, without its determinism check unless asked for."""
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(
        problem.model,
        problem.criterion,
        list(problem.model.parameters()),
        [problem.batch],
        check_deterministic=check,
    )


def pyhessian_of(problem: Problem) -> Any:
    """PyHessian's object, on a copy of the model because it leaves gradients and modes behind."""
    from pyhessian import hessian

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # backward(create_graph=True) warns of a leak
        return hessian(
            copy.deepcopy(problem.model), problem.criterion, data=problem.batch, cuda=False
        )


def products(problem: Problem, found: Sequence[str]) -> dict[str, Callable[[], object]]:
    """One product of each rival with one fixed random vector, in the rival's own vector format."""
    params = list(problem.model.parameters())
    v = torch.randn(problem.size, generator=torch.Generator().manual_seed(1))
    parts = unflat(v, params)
    cases: dict[str, Callable[[], object]] = {}
    if "pyhessian" in found:
        from pyhessian.utils import hessian_vector_product

        kept = pyhessian_of(problem)
        cases["pyhessian"] = lambda: hessian_vector_product(kept.gradsH, kept.params, parts)
    if "hessian-eigenthings" in found:
        operator = eigenthings_operator(problem)
        cases["hessian-eigenthings"] = lambda: operator.matvec(v)
    if "curvlinops" in found:
        linear = curvlinops_operator(problem)
        cases["curvlinops"] = lambda: linear @ parts
    return cases


def arpack(product: Product, n: int, k: int, **options: Any) -> Spectrum:
    """SciPy's eigsh, largest algebraic, on a product of torch vectors."""
    counted = Counted(lambda x: product(torch.from_numpy(x.astype(np.float32))).numpy())
    operator = LinearOperator((n, n), matvec=counted, dtype=np.float32)
    start = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    values, vectors = eigsh(operator, k, which="LA", v0=start, **options)
    return Spectrum(values[::-1].tolist(), torch.from_numpy(vectors.T[::-1].copy()), counted.calls)


def eigenthings(problem: Problem, k: int, **options: Any) -> Spectrum:
    """hessian-eigenthings' lanczos."""
    from hessian_eigenthings import lanczos

    found = lanczos(eigenthings_operator(problem), k=k, **{"seed": 0, **options})
    return Spectrum(
        found.eigenvalues.tolist(),
        found.eigenvectors,
        found.iterations,
        found.converged.tolist(),
    )


def pyhessian(problem: Problem, k: int, **options: Any) -> Spectrum:
    """PyHessian's power iteration with deflation."""
    module = import_module("pyhessian.hessian")  # the class of the same name hides it
    torch.manual_seed(0)
    counted = Counted(module.hessian_vector_product)
    original, module.hessian_vector_product = module.hessian_vector_product, counted
    try:
        values, vectors = pyhessian_of(problem).eigenvalues(top_n=k, **options)
    finally:
        module.hessian_vector_product = original
    return Spectrum(values, torch.stack([flat(v) for v in vectors]), counted.calls)


def curvlinops_arpack(problem: Problem, k: int, **options: Any) -> Spectrum:
    """curvlinops' operator in SciPy's eigsh."""
    operator = curvlinops_operator(problem)
    params = list(problem.model.parameters())
    return arpack(lambda v: flat(operator @ unflat(v, params)), problem.size, k, **options)
