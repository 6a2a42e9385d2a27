"""Lie derivatives layer by layer, each carried to the output, where they add up."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.gradients import valued
from eqtoolbox.replay.thread.scope import only_here
from eqtoolbox.symmetry.actions.action import Action, inside_of
from eqtoolbox.symmetry.actions.tangent import has_tangent, tangent_of
from eqtoolbox.symmetry.claim import Claimed
from eqtoolbox.symmetry.derivative import Derivative
from eqtoolbox.symmetry.groups.group import Direction
from eqtoolbox.symmetry.layers import Layers, call
from eqtoolbox.symmetry.orbit import double, require_inputs
from eqtoolbox.symmetry.structure import Tree, on_tensors, tensors
from eqtoolbox.symmetry.through import cut, takes_gradients

BETWEEN = "(between layers)"


@dataclass(frozen=True, kw_only=True)
class LayerShare:
    """What one layer adds to the Lie derivative of the whole network along one generator."""

    layer: str  # name of the module, or "(between layers)" for the rest
    kind: str  # its class
    part: Tensor  # (batch, features), float64: its local violation, carried to the output
    rate: float  # rms of `part` over samples, output units per unit of the generator
    share: float  # <part, total> / |total|^2; all shares add up to 1; NaN when the total is 0


@checked
def layer_shares(
    model: nn.Module,
    inputs: Tree,
    symmetry: Claimed,
    *,
    generator: int = 0,
    hidden: Mapping[str, Action] | None = None,
) -> list[LayerShare]:
    """The Lie derivative of a network as a sum over its layers.

    By the product rule L(h o g) = (L h)(g) + dh · (L g). Running the network with the tangent at
    every layer up to i replaced by its hidden action's, the output changes by R_i; R_(i-1) - R_i is
    what layer i adds, carried to the output, and the sum telescopes to J X - Y f for any hidden
    actions and any wiring. What happens after the last layer is the rest.

    Norms of the parts do not add up, shares do; a negative one cancels others.

    Cost: one forward with a derivative a layer, and some 7 for the hidden actions.

    Args:
        model: as in `culprit`.
        inputs: likewise.
        symmetry: likewise, of a continuous group.
        hidden: likewise.
        generator: index in `symmetry.group.generators()`.

    Returns:
        One entry a layer whose hidden action has a tangent, in order, then the rest.

    Raises:
        ValueError: the group has no such generator, an action no tangent, or the model takes
            gradients inside, which have no share of their own.

    Reference: Gruver et al. 2022, arXiv 2210.02984, estimate norms of the same parts.

    Example:
        >>> from eqtoolbox.symmetry.claim import Equivariance
        >>> from eqtoolbox.symmetry.actions.action import trivial
        >>> from eqtoolbox.symmetry.actions.linear import vectors
        >>> from eqtoolbox.symmetry.groups.matrices import SO2
        >>> x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh())
        >>> parts = layer_shares(model, x, Equivariance(SO2(), vectors, vectors))
        >>> round(sum(p.share for p in parts), 5)
        1.0
    """
    require_inputs(inputs)
    directions = symmetry.group.generators()
    if not 0 <= generator < len(directions):
        raise ValueError(
            f"generator must be one of the {len(directions)} of {symmetry.group.name}, "
            f"got {generator}"
        )
    direction = directions[generator]
    inputs = on_tensors(lambda x: x.detach(), inputs)
    arrow = tangent_of(symmetry.input_action, direction, inputs)
    if takes_gradients(lambda: call(model, on_tensors(torch.clone, inputs))):
        raise ValueError(
            "the model takes gradients of its layers inside (forces of an energy): a layer moved "
            "by itself would change them; take the shares of the function that it differentiates"
        )
    found = Layers.of(model, inputs, symmetry, hidden)
    layers = [n for n in found.base if n in found.actions and has_tangent(found.actions[n])]
    flow = _Flow(model, inputs, arrow, {n: found.actions[n] for n in layers}, direction)
    ends = [flow.end(layers[:i]) for i in range(len(layers) + 1)]
    with torch.no_grad():
        own = tangent_of(symmetry.output_action, direction, valued(call, model, inputs))
    ends_flat = [_packed(inside_of(symmetry.output_action, end)) for end in [*ends, own]]
    total = ends_flat[0] - ends_flat[-1]
    kinds = {n: type(m).__name__ for n, m in model.named_modules()}
    parts = [a - b for a, b in pairwise(ends_flat)]
    size = float(total.square().sum())
    return [
        LayerShare(
            layer=name,
            kind=kinds.get(name, ""),
            part=part,
            rate=math.sqrt(float(part.square().sum()) / len(part)),
            share=float((part * total).sum()) / size if size > 0 else math.nan,
        )
        for name, part in zip([*layers, BETWEEN], parts, strict=True)
    ]


@dataclass(frozen=True)
class _Flow:
    """The network along x + s X, with s at 0."""

    model: nn.Module
    inputs: Tree
    arrow: Tree
    actions: Mapping[str, Action]
    direction: Direction

    def end(self, replaced: list[str]) -> Tree:
        """d/ds of the output when the outputs of these layers move by their hidden actions."""
        zero = torch.zeros(1, dtype=torch.float64)
        return Derivative(lambda s: self._at(s, replaced))(zero, [torch.ones_like(zero)])[1][0]

    def _at(self, s: Tensor, replaced: list[str]) -> Tree:
        def along(x: Tensor, v: Tensor) -> Tensor:
            return x + s.to(x) * v if x.is_floating_point() else x

        def watch(name: str) -> Any:
            done = False

            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                nonlocal done
                if done:  # a layer used again keeps its own tangent
                    return output
                done = True
                return _first_replaced(output, lambda y: along(y, self._own(name, y)))

            return hook

        modules = dict(self.model.named_modules())
        handles = [modules[n].register_forward_hook(only_here(watch(n))) for n in replaced]
        pairs = zip(tensors(self.inputs), tensors(self.arrow), strict=True)
        moved = iter([along(x, v) for x, v in pairs])
        try:
            return call(self.model, on_tensors(lambda _: next(moved), self.inputs))
        finally:
            for handle in handles:
                handle.remove()

    def _own(self, name: str, y: Tensor) -> Tensor:
        tangent: Tensor = tangent_of(self.actions[name], self.direction, y)
        return tangent


def _first_replaced(output: Any, change: Any) -> Any:
    """The output with its first floating-point tensor detached and moved."""
    done = False

    def leaf(y: Tensor) -> Tensor:
        nonlocal done
        if done or not y.is_floating_point():
            return y
        done = True
        moved: Tensor = change(cut(y))
        return moved

    return on_tensors(leaf, output)


def _packed(tree: Tree) -> Tensor:
    return torch.cat([double(y) for y in tensors(tree)], dim=1)
