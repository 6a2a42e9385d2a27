"""Equivariances: transformations of parameters that move outputs, or go with moved inputs."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.explanation import Trial, explained
from eqtoolbox.weights.search.first_layers import propose_input_rotation
from eqtoolbox.weights.search.head import propose_head
from eqtoolbox.weights.search.homogeneous import propose_homogeneity
from eqtoolbox.weights.search.problem import MovedInputs, Problem
from eqtoolbox.weights.search.slopes import Slopes
from eqtoolbox.weights.search.verification import draw, evaluated, gradients, judged, move


def equivariances(problem: Problem) -> Iterator[ContinuousSymmetry]:
    """Transformations that move the outputs in a known way; orders 0 and 1 of f, not of the loss.

    order 0: |f(T_c theta) - R_c f| / |f|, of all outputs; order 1: |u . (J K_c - rho_c)| for a
    random u, over the scale of both terms (`search.slopes`).
    """
    head = list(propose_head(problem.trace))
    names = [set(s.names) for s in head]
    whole = [s for s in propose_homogeneity(problem.trace) if set(s.names) not in names]
    proposed: list[ContinuousSymmetry] = [*whole, *head]
    outputs, point = problem.outputs, problem.point
    if outputs is None or not proposed:
        return
    y = evaluated(outputs, point)
    u = torch.randn(y.shape, generator=problem.random, dtype=y.dtype, device=problem.random.device)
    u = u.to(y)
    slopes = Slopes(proposed)
    gradients(lambda p: (u * outputs(p)).sum(), point, slopes.add)
    for k, symmetry in enumerate(proposed):
        c = draw(symmetry, y, problem.random)
        turned = symmetry.rho(y, c)
        slope = float((slopes.of(k) * c.to(torch.float64)).sum()) - float((u * turned).sum())
        scale = slopes.scale(k) * float(c.norm()) + float(u.norm() * turned.norm())
        there = evaluated(outputs, point, [move(symmetry, symmetry.flow(c))])
        defect = (there - symmetry.transform_outputs(y, c)).norm() / y.norm().clamp_min(1e-300)
        worst = max(abs(slope) / max(scale, 1e-300), float(defect))
        checked = judged(symmetry, worst, y.dtype)
        if checked.status == "approximate":
            (checked,) = explained(outputs, point, y, [Trial(checked, c, slope, scale)], u)
        if checked.status != "broken":
            yield checked


def tied_to_inputs(problem: Problem, moved_inputs: MovedInputs) -> Iterator[ContinuousSymmetry]:
    """Parameters and inputs moved together, the loss unchanged.

    order 0: |L(T_c theta, S_c x) - L| / |L|; order 1: |g . K + <dL/dx, X>| over the larger term,
    X the inputs' tangent; the second term is the derivative along x + s X.
    """
    for symmetry in propose_input_rotation(problem.trace):
        c = draw(symmetry, problem.value, problem.random)
        turned = partial(symmetry.transform_inputs, coefficients=c)
        try:
            there = evaluated(
                partial(_loss_of, moved_inputs, turned),
                problem.point,
                [move(symmetry, symmetry.flow(c))],
            )
        except RuntimeError:  # not the model's first argument
            continue
        order_0 = float((there - problem.value).abs() / problem.value.abs().clamp_min(1e-300))
        s = torch.zeros((), dtype=problem.value.dtype, requires_grad=True)
        leaves = {n: p.detach() for n, p in problem.point.items()}
        leaves |= {n: leaves[n].clone().requires_grad_() for n in symmetry.names}
        with problem.point.scope():
            loss = moved_inputs(leaves, partial(_along, symmetry, c, s))
            wanted = [s, *(leaves[n] for n in symmetry.names)]
            slope, *own = torch.autograd.grad(loss, wanted, materialize_grads=True)
        tangent = symmetry.tangent(problem.point, c)
        pairs = zip(symmetry.names, own, strict=True)
        along = sum(float((g * tangent[n]).sum()) for n, g in pairs)
        order_1 = abs(along + float(slope)) / max(abs(along), abs(float(slope)), 1e-300)
        checked = judged(symmetry, max(order_0, order_1), problem.value.dtype)
        if checked.status != "broken":
            yield checked


def _loss_of(
    moved_inputs: MovedInputs, turned: Callable[[Tensor], Tensor], params: dict[str, Tensor]
) -> Tensor:
    return moved_inputs(params, turned)


def _along(symmetry: ContinuousSymmetry, c: Tensor, s: Tensor, inputs: Tensor) -> Tensor:
    return inputs + s * symmetry.tangent_inputs(inputs, c)
