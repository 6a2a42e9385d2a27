"""Laws of equivariances: what a transformation of the outputs says of gradient and Hessian.

f(T_s theta) = R_s f(theta) with generators K and rho(y) gives, for the loss l of the outputs y,

    g . K = c,   H K + (DK)^T g = grad c,   c(theta) = <dl/dy, rho(y)>,

so that along a flow of the gradient a charge Q with K = grad Q moves by dQ/dt = -c: the implicit
bias. Yang & Ziyin 2025, arXiv 2512.21447.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.linalg.graph import differentiating, filled
from eqtoolbox.linalg.vectors import add, zeros_like
from eqtoolbox.probes.law import Elements, Members
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.window import Window
from eqtoolbox.watch.snapshot import NotApplicable


@dataclass(frozen=True)
class Bias:
    """c of one element of an algebra, and its gradient."""

    value: float
    gradient: Parameters


def biases(
    objective: Objective, params: Parameters, families: Members, elements: Elements
) -> dict[str, Bias]:
    """c and grad c of an element of each family, from the outputs and not from K.

    Args:
        objective: the loss; of an accumulation window the weighted sum over its micro-batches.
        params: theta.
        families: equivariances by family.
        elements: coefficients of each member, (dimension,).

    Raises:
        NotApplicable: the loss is not computed from one output tensor of the model.
    """
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    value = dict.fromkeys(families, 0.0)
    total = {family: zeros_like(params) for family in families}
    for part, weight in weighted(objective):
        with differentiating(part, leaves):
            output, slope = _slope(part, leaves)
            for family, members in families.items():
                along = [
                    member.rho(output, c.to(output.device))
                    for member, c in zip(members, elements[family], strict=True)
                ]
                c = weight * (slope * torch.stack(along).sum(0)).sum()
                rows = torch.autograd.grad(
                    c, list(leaves.values()), retain_graph=True, allow_unused=True
                )
                value[family] += float(c.detach())
                total[family] = add(total[family], filled(leaves, rows))
    return {family: Bias(value[family], total[family]) for family in families}


def weighted(objective: Objective) -> tuple[tuple[Objective, float], ...]:
    """The losses whose weighted sum the objective is."""
    return objective.parts if isinstance(objective, Window) else ((objective, 1.0),)


def _slope(objective: Objective, leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """y and dl/dy, both in the graph of the parameters."""
    output, loss = objective.output_and_loss(leaves)
    if output is None:
        raise NotApplicable("the loss does not call the model once for one output tensor")
    (slope,) = torch.autograd.grad(loss, output, create_graph=True, allow_unused=True)
    if slope is None:
        raise NotApplicable("the loss is not computed from the output of the model")
    return output, slope
