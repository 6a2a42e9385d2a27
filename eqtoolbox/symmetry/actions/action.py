"""Actions `(g, x) -> gx` on the last two dimensions of an image, and the laws that they owe.

Each one permutes pixels, so nothing is interpolated and nothing is rounded.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import NotNegative
from eqtoolbox.symmetry.groups.group import Element, Group
from eqtoolbox.symmetry.structure import Tree, batch_size, first, floating, precision, tensors

# on a tensor, or on a dict, tuple or list of them
Action = Annotated[Callable[[Element, Any], Any], takes(2, "(g, x) -> gx")]

_CHECKED = 8  # group elements whose laws are checked


def trivial(g: Element, x: Tensor) -> Tensor:
    """x itself, whatever g: the output action of an invariant model.

    Args:
        g: any element of any group.
        x: any shape.

    Example:
        >>> trivial(3, torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    return x


def quarter_turn(g: int, x: Tensor) -> Tensor:
    """x turned counterclockwise by g quarter turns: the action of Cyclic(4).

    Args:
        g: number of quarter turns.
        x: (..., size, size).

    Returns:
        (..., size, size), contiguous, so that a model may call `view` on it.

    Raises:
        ValueError: fewer than two dimensions, or the image is not square.

    Example:
        >>> quarter_turn(1, torch.tensor([[1, 2], [3, 4]]))
        tensor([[2, 4],
                [1, 3]])
    """
    _require_square(x, "quarter_turn")
    return torch.rot90(x, fitted("g", g, int), dims=(-2, -1)).contiguous()


def dihedral(g: tuple[int, bool], x: Tensor) -> Tensor:
    """x mirrored left to right if flipped, then given k quarter turns: the action of Dihedral(4).

    Args:
        g: (k, flipped).
        x: (..., size, size).

    Returns:
        (..., size, size), contiguous.

    Raises:
        ValueError: fewer than two dimensions, or the image is not square.

    Example:
        >>> dihedral((1, True), torch.tensor([[1, 2], [3, 4]]))
        tensor([[1, 3],
                [2, 4]])
    """
    _require_square(x, "dihedral")
    turns, flipped = fitted("g", g, tuple[int, int | bool])
    mirrored = torch.flip(x, dims=(-1,)) if flipped else x
    return torch.rot90(mirrored, turns, dims=(-2, -1)).contiguous()


def flip(g: bool, x: Tensor) -> Tensor:
    """x mirrored left to right when g is True: the action of Flip.

    Args:
        g: whether to mirror.
        x: (..., height, width).

    Raises:
        ValueError: fewer than two dimensions.

    Example:
        >>> flip(True, torch.tensor([[1, 2], [3, 4]]))
        tensor([[2, 1],
                [4, 3]])
    """
    _require_image(x, "flip")
    return torch.flip(x, dims=(-1,)) if fitted("g", g, int | bool) else x


def roll(g: tuple[int, int], x: Tensor) -> Tensor:
    """x shifted down by dy and right by dx, what leaves on one side entering on the other.

    The action of CyclicTranslation when its size is that of the image.

    Args:
        g: (dy, dx) in pixels.
        x: (..., height, width).

    Raises:
        ValueError: fewer than two dimensions.

    Example:
        >>> roll((0, 1), torch.tensor([[1, 2, 3]]))
        tensor([[3, 1, 2]])
    """
    _require_image(x, "roll")
    return torch.roll(x, shifts=tuple(fitted("g", g, tuple[int, int])), dims=(-2, -1))


SPATIAL: frozenset[Action] = frozenset({quarter_turn, dihedral, flip, roll})


def _require_image(x: Tensor, action: str) -> None:
    fitted("x", x, Tensor)
    if x.dim() < 2:
        raise ValueError(
            f"{action} moves height and width: expected at least 2 dimensions, "
            f"got shape {tuple(x.shape)}; use trivial where there is no image"
        )


def _require_square(x: Tensor, action: str) -> None:
    _require_image(x, action)
    height, width = x.shape[-2:]
    if height != width:
        raise ValueError(
            f"{action} expected height == width, got {height}x{width}; use flip or roll, or crop"
        )


@checked
def check_action(
    group: Group,
    action: Action,
    x: Tree,
    *,
    name: str = "action",
    tolerance: NotNegative | None = None,
) -> None:
    """Verify on an example that a function is an action of a group and leaves the batch alone.

    The laws are S_e = id, S_g^-1 S_g = id, S_g S_h = S_gh and that each sample is moved by itself,
    for all pairs of up to 8 elements; for a semigroup (`Strengths`) the first and the last. A
    constant x satisfies them all: take one with content.

    Args:
        group: the group that the action should represent.
        action: a function `(g, x) -> gx`.
        x: (batch, ...), or a dict, tuple or list of such; two samples are enough.
        name: how the error calls the action.
        tolerance: relative defect |left - right| / |right| that passes; None takes it from the
            dtype: 100 roundings for exact groups (at most the root of one), else the root of one.

    Raises:
        ValueError: which law breaks at which element by how much, and what to do.

    Example:
        >>> from eqtoolbox.symmetry.groups.group import Cyclic
        >>> check_action(Cyclic(4), quarter_turn, torch.rand(2, 3, 3))
    """
    shape = tuple(x.shape) if isinstance(x, Tensor) else [tuple(t.shape) for t in tensors(x)]
    where = f"{name} of {group.name} on shape {shape}"
    if batch_size(x) == 0:
        raise ValueError(f"{where}: expected at least one sample to check it on")
    if action in SPATIAL and isinstance(x, Tensor) and x.dim() < 3:
        raise ValueError(
            f"{where} moves height and width, but a sample has shape {tuple(x.shape[1:])}; "
            "use trivial where there is no image"
        )
    eps = precision(x) if floating(x) else 0.0
    derived = min(100.0 * eps, math.sqrt(eps)) if group.exact else math.sqrt(eps)
    own = getattr(action, "tolerance", None)  # of an action that interpolates
    bound = tolerance if tolerance is not None else derived if own is None else own

    def act(g: Element, x: Tree) -> Tree:
        try:
            return action(g, x)
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            raise ValueError(f"{where} fails at {g!r}: {error}") from error

    def demand(law: str, at: Element, left: Tree, right: Tree, remedy: str) -> None:
        found = _defect(inside_of(action, left), inside_of(action, right), bound)
        if found:
            raise ValueError(f"{where} breaks {law} at {at!r}: {found}; {remedy}")

    belong = (
        f"{group.name} does not belong to it: take the group that it represents (Cyclic(4) for "
        "quarter_turn, CyclicTranslation of the image size for roll) or mend the action"
    )
    demand("S_e = id", group.identity, act(group.identity, x), x, "the identity moves nothing")
    elements = _some(group)
    moved = [act(g, x) for g in elements]
    for g, gx in zip(elements, moved, strict=True):
        alone = "leave the batch dimension out of it"
        demand("one sample at a time", g, act(g, first(x, 1)), first(gx, 1), alone)
        if not group.invertible:
            continue
        demand("S_g^-1 S_g = id", g, act(group.inverse(g), gx), x, belong)
        for h, hx in zip(elements, moved, strict=True):
            demand("S_g S_h = S_gh", (g, h), act(g, hx), act(group.compose(g, h), x), belong)


def _some(group: Group) -> list[Element]:
    if group.order is not None and group.order <= _CHECKED + 1:
        return [g for g in group.elements() if g != group.identity]
    return group.sample(_CHECKED, torch.Generator().manual_seed(0))


def inside_of(action: Any, x: Tree) -> Tree:
    """x with what the action cannot compare (edges lost by a shift, corners by a turn) set to zero.

    An action with such an edge has a method `inside(x)`; without one x comes back as it is.
    """
    mask = getattr(action, "inside", None)
    return x if mask is None else mask(x)


def has_edge(action: Any) -> bool:
    """Whether the action, or one that it is made of, cannot compare all that it moves.

    Example:
        >>> has_edge(roll)
        False
    """
    inner = [getattr(action, name, None) for name in ("action", "actions", "parts")]
    made_of = [leaf for leaf in tree_leaves(inner) if leaf is not None]
    return any(map(has_edge, made_of)) if made_of else hasattr(action, "inside")


def _defect(left: Tree, right: Tree, bound: float) -> str:
    left, right = tensors(left), tensors(right)
    if len(left) != len(right):
        return f"{len(left)} tensors instead of {len(right)}"
    return next(filter(None, (_apart(a, b, bound) for a, b in zip(left, right, strict=True))), "")


def _apart(left: Tensor, right: Tensor, bound: float) -> str:
    if left.shape != right.shape:
        return f"shape {tuple(left.shape)} instead of {tuple(right.shape)}"
    if torch.equal(left, right):
        return ""
    if not left.is_floating_point():
        return f"{int((left != right).sum())} of {left.numel()} entries differ"
    defect = float((left - right).norm() / right.norm())
    return "" if defect <= bound else f"relative defect {defect:.2g}, tolerance {bound:.2g}"
