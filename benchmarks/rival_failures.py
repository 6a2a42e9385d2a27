"""Claim: where the best libraries return wrong numbers, eqtoolbox returns right ones or refuses.

Every line prints the truth, what the rival says (and whether it calls that converged), and ours.
The truth never comes from eqtoolbox: a converged eigsh, a prescribed spectrum, or finite
differences of gradients in float64.

    python benchmarks/rival_failures.py
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from curvature_models import Problem, problem, resnet
from environment import store
from rivals import (
    arpack,
    curvlinops_operator,
    eigenthings,
    flat,
    installed,
    pyhessian,
    retained,
    unflat,
)
from timing import begin
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqtoolbox.linalg import MatrixOperator, hessian, top_eigenpairs

Row = dict[str, Any]  # case, truth, rival, ours, rival_error, ours_error


def _row(case: str, truth: Any, rival: Any, ours: Any, rival_error: float, own: float) -> Row:
    return {
        "case": case,
        "truth": truth,
        "rival": rival,
        "ours": ours,
        "rival_error": rival_error,
        "ours_error": own,
    }


def too_few_steps() -> list[Row]:
    """hessian-eigenthings: lanczos(k=1) takes two steps by default."""
    rows = []
    for name in ("mlp", "resnet-small", "gpt-small"):
        p = problem(name)
        with sdpa_kernel(SDPBackend.MATH):
            truth = arpack(retained(p), p.size, 1, tol=1e-6).values[0]
            theirs = eigenthings(p, 1).values[0]
            with hessian(p.loss, p.params()) as H:
                own = top_eigenpairs(H, 1).values[0].item()
        errors = abs(theirs / truth - 1), abs(own / truth - 1)
        rows.append(_row(f"eigenthings lanczos(k=1), {name}", truth, theirs, own, *errors))
    return rows


def ghosts() -> list[Row]:
    """hessian-eigenthings: max_iter=100 switches reorthogonalisation off."""
    from hessian_eigenthings import LambdaOperator, lanczos

    torch.manual_seed(0)
    size, truth = 2000, [100.0, 50.0, 20.0, 10.0, 5.0]
    basis = torch.linalg.qr(torch.randn(size, size).double())[0]
    spectrum = torch.cat([torch.tensor(truth), torch.linspace(-1, 1, size - 5)]).double()
    matrix = (basis * spectrum @ basis.T).float()
    matrix = (matrix + matrix.T) / 2
    operator = LambdaOperator(
        lambda v: matrix @ v, size=size, device=torch.device("cpu"), dtype=torch.float32
    )
    found = lanczos(operator, k=5, max_iter=100, which="LA", seed=0)
    own = top_eigenpairs(MatrixOperator(matrix), 5).values
    values, claims = found.eigenvalues.tolist(), int(found.converged.sum())
    case = f"eigenthings lanczos(max_iter=100), {claims} of 5 'converged'"
    exact = torch.tensor(truth, dtype=torch.float64)
    errors = [float((torch.as_tensor(x) / exact - 1).abs().max()) for x in (values, own)]
    return [_row(case, truth, values, own.tolist(), *errors)]


def uneven_batches() -> list[Row]:
    """hessian-eigenthings: a last batch of one sample counts as much as one of 32."""
    p = problem("mlp-small")
    images, labels = (x[:33] for x in p.batch)
    chunks = [(images[:32], labels[:32]), (images[32:], labels[32:])]
    v = torch.randn(p.size, generator=torch.Generator().manual_seed(1))
    truth = _difference(p.model, p.criterion, (images, labels), v)
    from hessian_eigenthings import HessianOperator

    theirs = HessianOperator(p.model, chunks, p.loss_at).matvec(v)

    def loss_of(batch: Any) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda params: p.criterion(
            torch.func.functional_call(p.model, params, batch[0]), batch[1]
        )

    H = hessian([loss_of(c) for c in chunks], p.params(), weights=[32, 1])
    own = _flat_product(H, p.model, v)
    errors = _off(theirs, truth), _off(own, truth)
    return [_row("eigenthings, batches of 32 + 1: error of Hv", 0.0, *errors, *errors)]


def moving_statistics() -> list[Row]:
    """hessian-eigenthings: every product moves the running statistics of BatchNorm."""
    torch.manual_seed(0)
    model = resnet(16, statistics=True)
    p = problem("resnet-small", steps=0)
    moved = {}
    for tool in ("eigenthings", "eqtoolbox"):
        q = _with_model(p, copy.deepcopy(model))
        before = {n: b.clone() for n, b in q.model.named_buffers()}
        if tool == "eigenthings":
            eigenthings(q, 5)
        else:
            buffers = {n: b.clone() for n, b in q.model.named_buffers()}

            def loss(params: Any, q: Problem = q, buffers: Any = buffers) -> Tensor:
                fresh = {n: b.clone() for n, b in buffers.items()}
                return q.criterion(
                    torch.func.functional_call(q.model, {**params, **fresh}, q.batch[0]), q.batch[1]
                )

            top_eigenpairs(hessian(loss, q.params()), 5, max_matvecs=10, confirm=0)
        moved[tool] = max(
            float((b.double() - before[n].double()).abs().max()) for n, b in q.model.named_buffers()
        )
    theirs, own = moved["eigenthings"], moved["eqtoolbox"]
    case = "eigenthings, BatchNorm: largest change of a buffer in a solve"
    return [_row(case, 0.0, theirs, own, theirs, own)]


def small_scale() -> list[Row]:
    """PyHessian: absolute constants in its norms; a loss scaled by 1e-7 has other eigenvalues."""
    p = problem("mlp-small")
    q = _with_model(p, p.model, criterion=Scaled(p.criterion, 1e-7))
    truth = [1e-7 * x for x in arpack(retained(p), p.size, 3, tol=1e-6).values]
    theirs = pyhessian(q, 3).values
    with hessian(q.loss, q.params()) as H:
        own = top_eigenpairs(H, 3).values.tolist()
    errors = [max(abs(a / b - 1) for a, b in zip(x, truth, strict=True)) for x in (theirs, own)]
    return [_row("pyhessian, loss scaled by 1e-7, top 3", truth, theirs, own, *errors)]


def wrong_order() -> list[Row]:
    """PyHessian: power iteration stops at a slow change, in any order, at either end."""
    p = problem("resnet-small")
    truth = arpack(retained(p), p.size, 5, tol=1e-6, ncv=40).values
    theirs = pyhessian(p, 5).values
    with hessian(p.loss, p.params()) as H:
        own = top_eigenpairs(H, 5).values.tolist()
    errors = [
        max(abs(a - b) for a, b in zip(x, truth, strict=True)) / truth[0] for x in (theirs, own)
    ]
    return [_row("pyhessian, ResNet, top 5", truth, theirs, own, *errors)]


def normalisation_weights() -> list[Row]:
    """curvlinops: jvp of jacrev is silently wrong for normalisation weights (torch 2.13)."""
    rows = []
    for name in ("resnet-small", "gpt-small"):
        p = problem(name)
        model = copy.deepcopy(p.model).double()
        batch = tuple(x.double() if x.is_floating_point() else x for x in p.batch)
        q = _with_model(p, model, batch=batch)
        v = torch.randn(p.size, generator=torch.Generator().manual_seed(1)).double()
        with sdpa_kernel(SDPBackend.MATH):
            truth = _difference(model, p.criterion, batch, v, kinks=name.startswith("resnet"))
            operator, params = curvlinops_operator(q), list(model.parameters())
            theirs = flat(operator @ unflat(v, params))
            with hessian(q.loss, q.params()) as H:
                own = _flat_product(H, model, v)
        errors = _off(theirs, truth), _off(own, truth)
        case = f"curvlinops, {name}, float64: error of Hv"
        rows.append(_row(case, 0.0, *errors, *errors))
    return rows


class Scaled(nn.Module):
    """A criterion times a constant."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.factor * self.inner(output, target)


def _with_model(p: Problem, model: nn.Module, **changes: Any) -> Problem:
    fields = {"criterion": p.criterion, "batch": p.batch, **changes}
    return Problem(name=p.name, model=model, stream=p.stream, lr=p.lr, **fields)


def _difference(
    model: nn.Module, criterion: nn.Module, batch: Any, v: Tensor, *, kinks: bool = False
) -> Tensor:
    """Hv by central differences of float64 gradients, with a step too short to meet a kink."""
    twin = copy.deepcopy(model).double()
    params = list(twin.parameters())
    inputs = batch[0].double() if batch[0].is_floating_point() else batch[0]
    at, h, v = flat(params), 1e-9 if kinks else 1e-5, v.double()

    def gradient(point: Tensor) -> Tensor:
        with torch.no_grad():
            for x, y in zip(params, unflat(point, params), strict=True):
                x.copy_(y)
        return flat(torch.autograd.grad(criterion(twin(inputs), batch[1]), params))

    return (gradient(at + h * v) - gradient(at - h * v)) / (2 * h)


def _flat_product(operator: Any, model: nn.Module, v: Tensor) -> Tensor:
    params = dict(model.named_parameters())
    parts = dict(zip(params, unflat(v, list(params.values())), strict=True))
    product = operator(parts)
    return flat([product[name] for name in params])


def _off(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


CASES = {
    "hessian-eigenthings": [too_few_steps, ghosts, uneven_batches, moving_statistics],
    "pyhessian": [small_scale, wrong_order],
    "curvlinops": [normalisation_weights],
}


def main() -> None:
    warnings.simplefilter("ignore")
    begin()
    versions, rows = installed(), []
    for library, cases in CASES.items():
        if library in versions:
            rows += [row for case in cases for row in case()]
    for row in rows:
        print(row["case"])
        for side in ("truth", "rival", "ours"):
            print(f"  {side:6s} {_words(row[side])}")
        print(f"  relative error: rival {row['rival_error']:.1e}, ours {row['ours_error']:.1e}")
    print(store("rival_failures", {"rivals": versions, "cases": rows}))


def _words(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(f"{x:.4g}" for x in values)


if __name__ == "__main__":
    main()
