"""Claim: what a Hessian product is off by in float32, in TF32, and under bfloat16 autocast.

Relative to the product in float64, |Hv - H64 v| / |H64 v|, along a random vector and along H64 v,
which is what a Lanczos chain comes to multiply. TF32, which tensor cores alone have, is emulated:
operands of every matrix product and convolution, forward and backward, are rounded to ten bits and
their products summed in float32.

    python benchmarks/hvp_precision.py
"""

from contextlib import nullcontext
from typing import Any

import torch
from curvature_models import NAMES, Problem, problem
from environment import store
from timing import begin
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from eqtoolbox.linalg import hessian
from eqtoolbox.linalg.vectors import Vector, add, norm, random_like

_DROPPED = 13  # bits of float32's mantissa that TF32 has not
_OPERANDS = {  # where an operation has them
    "mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "convolution": (0, 1),
    "convolution_backward": (0, 1, 2), "mkldnn_convolution": (0, 1),
}  # fmt: skip


class Tf32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operands of products rounded to the nearest number of TF32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = list(args)
        for k in _OPERANDS.get(func.overloadpacket.__name__, ()):
            given[k] = rounded(given[k])
        return func(*given, **(kwargs or {}))


def rounded(x: Tensor) -> Tensor:
    """To the nearest number of TF32, halves away from zero."""
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32) + (1 << (_DROPPED - 1))
    return (bits & -(1 << _DROPPED)).view(torch.float32)


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
    ways = ("float32", p.loss, False), ("TF32", p.loss, True), ("bfloat16 autocast", coarse, False)
    for precision, loss, short in ways:
        for name, u in (("random", v), ("along Hv", along)):
            want = exact(_double(u))
            with Tf32() if short else nullcontext():
                made = hessian(loss, params, accuracy=0.5)(u)
            found[f"{precision}, {name}"] = norm(add(_double(made), want, -1.0)) / norm(want)
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
