"""Dependence: whether outputs depend on their inputs at all, as far as a batch can tell."""

import torch
from torch import Tensor

from eqtoolbox.record.record import HOLDS
from eqtoolbox.symmetry.orbit import Function, distance, double, square, wide
from eqtoolbox.symmetry.structure import Tree, floating, on_tensors, tensors

CONSTANT = "the output does not depend on the input: every symmetry holds, and none says anything"


def constant(
    function: Function, inputs: Tree, outputs: Tensor, noise: float, generator: torch.Generator
) -> bool:
    """Whether all samples have the same output; of samples that are all alike, whether others do.

    Args:
        function: f, to the tensor that is compared.
        inputs: x, (batch, ...) or a tree of tensors.
        outputs: f(x), (batch, ...).
        noise: relative noise of f(x).
        generator: draws other inputs, where all that are given are alike.

    Example:
        >>> x, rng = torch.rand(4, 3), torch.Generator().manual_seed(0)
        >>> [constant(f, x, f(x), 1e-7, rng) for f in (torch.sin, lambda x: x * 0 + 2.0)]
        [False, True]
    """
    rows = double(outputs)
    apart = float(square(rows - rows.mean(0)) / square(rows).clamp_min(1e-300)) ** 0.5
    if apart > HOLDS * noise:
        return False
    if len(rows) > 1 and any(bool((x != x[:1]).any()) for x in tensors(inputs)):
        return True
    if len(floating(inputs)) < len(tensors(inputs)):
        return False  # of a single graph, say: other indices are not for us to make up

    def other(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        size = x.detach().to(wide(x), torch.float64).square().mean().sqrt()
        draw = torch.randn(x.shape, generator=generator, device=generator.device)
        return x + (float(size) or 1.0) * draw.to(x)

    try:
        return distance(function(on_tensors(other, inputs)), outputs) <= HOLDS * noise
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError):
        return False  # it takes no other inputs
