"""Tangents of actions: d/ds S_exp(s A) x at s = 0, known in closed form or not at all."""

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from eqtoolbox.symmetry.actions.action import Action, trivial
from eqtoolbox.symmetry.groups.group import Direction
from eqtoolbox.symmetry.structure import Tree, on_tensors


class NoTangent(ValueError):
    """An action has no derivative that could be trusted; finite elements still measure it."""


def has_tangent(action: Action) -> bool:
    """True when the action knows its own derivative."""
    return action is trivial or hasattr(action, "tangent")


def tangent_error(action: Any) -> float:
    """Relative error of an action's tangent where it is not exact: its own, or its parts' largest.

    Example:
        >>> tangent_error(trivial)
        0.0
    """
    inner = [getattr(action, name, None) for name in ("action", "actions", "parts")]
    leaves = [leaf for leaf in tree_leaves(inner) if leaf is not None]
    return max([float(getattr(action, "tangent_error", 0.0)), *map(tangent_error, leaves)])


def tangent_of(action: Any, generator: Direction, x: Tree) -> Tree:
    """The derivative of an action at the identity, along a generator of its group.

    Never by differentiating through interpolation: at the identity a bilinear sampler has a kink
    and a bicubic one a derivative 1.5 times too large.

    Args:
        action: `trivial`, or one with a method `tangent(generator, x)`.
        generator: one of `group.generators()`.
        x: what the action moves.

    Raises:
        NoTangent: the action has none.

    Example:
        >>> tangent_of(trivial, torch.zeros(3, 3), torch.ones(2))
        tensor([0., 0.])
    """
    if action is trivial:
        return on_tensors(torch.zeros_like, x)
    if not hasattr(action, "tangent"):
        name = getattr(action, "__name__", type(action).__name__)
        raise NoTangent(
            f"{name} has no tangent: a zero derivative would not mean invariance. "
            "Use equivariance_error (finite elements), or an action with a method tangent"
        )
    return action.tangent(generator, x)
