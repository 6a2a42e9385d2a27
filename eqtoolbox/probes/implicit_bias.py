"""Laws of equivariances: what a transformation of the outputs says of gradient and Hessian.

f(T_s theta) = R_s f(theta) with generators K and rho(y) gives, for the loss l of the outputs y,

    g . K = c,   H K + (DK)^T g = grad c,   c(theta) = <dl/dy, rho(y)>,

so that along a flow of the gradient a charge Q with K = grad Q moves by dQ/dt = -c: the implicit
bias. Yang & Ziyin 2025, arXiv 2512.21447.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eqtoolbox.linalg.graph import differentiating, filled
from eqtoolbox.linalg.vectors import add, norm
from eqtoolbox.probes.inside import Inside
from eqtoolbox.probes.law import Bias, Elements, Members
from eqtoolbox.replay.gradients import leaf
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.watch.snapshot import NotApplicable
from eqtoolbox.weights.parameter import ContinuousSymmetry

ROUNDED = 100.0  # roundings between the gradient and that by way of the output


def biases(
    objective: Objective,
    params: Parameters,
    families: Members,
    elements: Elements,
    take: Callable[[str, Bias], object],
) -> None:
    """c and grad c of an element of each family, from the outputs and not from K.

    Args:
        objective: the loss; of an accumulation window the weighted sum over its micro-batches.
        params: theta.
        families: equivariances by family.
        elements: coefficients of each member, (dimension,).
        take: is given them family by family; of one loss no two are held at once.

    Raises:
        NotApplicable: the loss is not a function of one output tensor of the model alone, or that
            function has no second derivative.
    """
    leaves = {n: leaf(p.detach()) for n, p in params.items()}
    known: dict[str, Bias] = {}
    for k, (part, weight) in enumerate(objective.terms, start=1):
        with differentiating(part, leaves):
            output, slope = _slope(part, leaves)
            for family, members in families.items():
                along = [
                    member.rho(output, c.to(output.device))
                    for member, c in zip(members, elements[family], strict=True)
                ]
                c = weight * part.total((slope * torch.stack(along).sum(0)).sum())
                found = Bias(float(c.detach()), filled(leaves, _rows(c, leaves)))
                if before := known.pop(family, None):
                    total = add(before.gradient, found.gradient)
                    found = Bias(before.value + found.value, total)
                if k < len(objective.terms):
                    known[family] = found
                else:
                    take(family, found)


def bias(
    objective: Objective,
    params: Parameters,
    members: Sequence[ContinuousSymmetry],
    element: Sequence[Tensor],
) -> Bias:
    """c and grad c of one element of these equivariances together; as `biases`."""
    found: list[Bias] = []
    biases(objective, params, {"": members}, {"": element}, lambda _, c: found.append(c))
    return found[0]


def _slope(objective: Objective, leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """y and dl/dy, both in the graph of the parameters."""
    with Inside() as inside:
        output, loss = objective.output_and_loss(leaves)
    if output is None:
        raise NotApplicable("the loss does not call the model once for one output tensor")
    (slope,) = torch.autograd.grad(loss, output, create_graph=True, allow_unused=True)
    if slope is None:
        raise NotApplicable("the loss is not computed from the output of the model")
    if inside.kept:  # then dl/dy is not all there is of dl
        whole, through = _rows(loss, leaves), _rows(output, leaves, slope.detach())
        one, two = filled(leaves, whole), filled(leaves, through)
        eps = max(torch.finfo(p.dtype).eps for p in leaves.values())
        if norm(add(one, two, -1.0)) > ROUNDED * eps * norm(one):
            raise NotApplicable(
                "the loss differentiates the model inside, and so depends on more than its output: "
                "what the output's transformation says of the gradient does not follow"
            )
    return output, slope


def _rows(
    root: Tensor, leaves: dict[str, Tensor], along: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Derivatives by the parameters.

    Raises:
        NotApplicable: an operation has none.
    """
    try:
        return torch.autograd.grad(
            root, list(leaves.values()), along, retain_graph=True, allow_unused=True
        )
    except RuntimeError as reason:
        raise NotApplicable(f"no derivative of the law of equivariances: {reason}") from reason
