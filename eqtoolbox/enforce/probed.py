"""Actions on data as representations: read off from what they do to numbered entries."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from eqtoolbox.enforce.bearing import Bearing
from eqtoolbox.enforce.representation import Representation, Unfit, still
from eqtoolbox.symmetry.actions.action import Action, has_edge
from eqtoolbox.symmetry.groups.group import Element
from eqtoolbox.symmetry.structure import Tree

_DENSE = 512  # entries of a sample up to which an action is written as a matrix
_NEAR = 1e-9


def bearings(action: Action, elements: Sequence[Element], sample: Tree) -> list[Bearing | None]:
    """How each leaf of a batch is moved, None for what is no tensor.

    Raises:
        Unfit: the action is not linear, mixes leaves or changes values.
    """
    if has_edge(action):
        raise Unfit("an action that interpolates or loses an edge is no exact representation")
    leaves, spec = tree_flatten(sample)
    starts = [1 + sum(_entries(x) for x in leaves[:i]) for i in range(len(leaves))]
    numbered = [_numbered(x, start) for x, start in zip(leaves, starts, strict=True)]
    tree = tree_unflatten(numbered, spec)
    moved = [tree_flatten(action(g, tree))[0] for g in elements]
    found: list[Bearing | None] = []
    for i, (x, start) in enumerate(zip(leaves, starts, strict=True)):
        if not isinstance(x, Tensor):
            found.append(None)
            continue
        known = _exchange(numbered[i], [m[i] for m in moved], start)
        if known is None:
            known = _matrix(action, elements, (leaves, spec), i)
        found.append(Bearing.of(len(elements), (known, tuple(x.shape[1:]))))
    return found


def _entries(x: Any) -> int:
    return x[:1].numel() if isinstance(x, Tensor) else 0


def _numbered(x: Any, start: int) -> Any:
    if not isinstance(x, Tensor) or x.dtype == torch.bool:
        return x[:1] if isinstance(x, Tensor) else x
    numbers = torch.arange(start, start + _entries(x), dtype=torch.int64)
    return numbers.reshape(x[:1].shape).to(torch.float64 if x.is_floating_point() else x.dtype)


def _exchange(numbered: Tensor, moved: Sequence[Tensor], start: int) -> Representation | None:
    """Places and signs; None where entries are something else afterwards."""
    n = numbered.numel()
    if any(m.shape != numbered.shape for m in moved):
        raise Unfit(f"an action changes the shape {tuple(numbered.shape[1:])} of a sample")
    if numbered.dtype == torch.bool:
        if all(torch.equal(m, numbered) for m in moved):
            return still(len(moved), n)
        raise Unfit("masks that the group moves are not followed")
    values = torch.stack([m.reshape(-1) for m in moved]).to(torch.float64)
    places = values.abs() - start
    if torch.equal(places.sort(dim=1).values, torch.arange(n).expand(len(moved), n).double()):
        return Representation(source=places.long(), sign=values.sign())
    if not numbered.is_floating_point():
        raise Unfit("an action changes whole numbers and not only their places")
    return None


def _matrix(
    action: Action, elements: Sequence[Element], batch: tuple[list[Any], Any], i: int
) -> Representation:
    """The matrices of a linear action on one leaf."""
    leaves, spec = batch
    n, shape = _entries(leaves[i]), leaves[i].shape[1:]
    if n > _DENSE:
        raise Unfit(f"an action mixes {n} entries; up to {_DENSE} are followed")

    def act(g: Element, x: Tensor) -> Tensor:
        rows = [
            y[:1].double().expand(len(x), *y.shape[1:])
            if isinstance(y, Tensor) and y.is_floating_point()
            else y[:1].expand(len(x), *y.shape[1:])
            if isinstance(y, Tensor)
            else y
            for y in leaves
        ]
        rows[i] = x.reshape(-1, *shape)
        made: Tensor = tree_flatten(action(g, tree_unflatten(rows, spec)))[0][i]
        return made.reshape(len(x), n)

    rng = torch.Generator().manual_seed(0)
    tried = torch.randn(3, n, dtype=torch.float64, generator=rng)
    matrices = torch.stack([act(g, torch.eye(n, dtype=torch.float64)).T for g in elements])
    for g, m in zip(elements, matrices, strict=True):
        apart = float((act(g, tried) - tried @ m.T).abs().max())
        if not math.isfinite(apart) or apart > _NEAR * float(m.abs().max() + 1):
            raise Unfit(f"an action is not linear at {g!r} (it adds a constant, or more)")
    return Representation(
        source=torch.arange(n).expand(len(elements), n),
        sign=torch.ones(len(elements), n, dtype=torch.float64),
        matrix=matrices,
    )
