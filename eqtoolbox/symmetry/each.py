"""Actions on structured batches: one action a leaf, and what single graphs and sets need."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.words import shown
from eqtoolbox.symmetry.actions import Action, inside_of, trivial
from eqtoolbox.symmetry.group import Direction, Element
from eqtoolbox.symmetry.orbit import Function
from eqtoolbox.symmetry.structure import Tree, on_tensors, tensors
from eqtoolbox.symmetry.tangent import tangent_of

Walk = Callable[[Action, Any], Any]


@dataclass(frozen=True, eq=False)  # the parts may be a dict, which has no hash
class Each:
    """The action that moves every leaf of a dict, tuple or list by its own action.

    Every leaf needs one, `trivial` if it stays: what is forgotten (edge features, a padding mask)
    is the commonest false alarm, so it is refused and not left alone.

    Args:
        parts: a tree of actions with the structure of the batch; an action may stand for a branch.

    Raises:
        ValueError: on a batch of another structure, naming the leaf.

    Example:
        >>> import torch
        >>> from eqtoolbox.symmetry.actions import flip
        >>> mirror = Each({"image": flip, "label": trivial})
        >>> mirror(True, {"image": torch.tensor([[1, 2]]), "label": torch.tensor([7])})
        {'image': tensor([[2, 1]]), 'label': tensor([7])}
    """

    parts: Any

    def __post_init__(self) -> None:
        """Every leaf must be an action."""
        odd = [
            leaf for leaf in tree_leaves(self.parts) if not callable(leaf) or isinstance(leaf, type)
        ]
        if odd or not tree_leaves(self.parts):
            got = shown(odd[0]) if odd else "none"
            raise TypeError(
                f"parts must be a tree of actions, functions (g, x) -> gx, got {got}; `trivial` is "
                "the one that moves nothing"
            )

    def __call__(self, g: Element, x: Tree) -> Tree:
        return self._walk(lambda action, part: action(g, part), self.parts, x, "")

    def tangent(self, generator: Direction, x: Tree) -> Tree:
        """The derivative along a generator, leaf by leaf."""
        walk: Walk = lambda action, part: tangent_of(action, generator, part)
        return self._walk(walk, self.parts, x, "")

    def inside(self, x: Tree) -> Tree:
        """Every leaf with what its action cannot compare set to zero."""
        return self._walk(inside_of, self.parts, x, "")

    def _walk(self, act: Walk, parts: Any, x: Tree, where: str) -> Tree:
        if callable(parts):
            return act(parts, x)
        if isinstance(x, Mapping):
            parts = _by_name(parts)
        if isinstance(parts, Mapping) and isinstance(x, Mapping):
            if parts.keys() != x.keys():
                odd = sorted(map(str, parts.keys() ^ x.keys()))
                raise ValueError(
                    f"actions and batch differ in {odd}{where}: give every leaf an action, "
                    "trivial if it does not move"
                )
            moved = {k: self._walk(act, parts[k], x[k], f" at {k!r}") for k in x}
            return moved if type(x) is dict else type(x)(moved)  # type: ignore[call-arg]
        if isinstance(parts, tuple | list) and isinstance(x, tuple | list):
            if len(parts) != len(x):
                raise ValueError(f"expected {len(parts)} leaves{where}, got {len(x)}")
            several = [
                self._walk(act, part, leaf, f" at [{i}]")
                for i, (part, leaf) in enumerate(zip(parts, x, strict=True))
            ]
            return type(x)(*several) if hasattr(x, "_fields") else type(x)(several)
        raise ValueError(f"no action for {type(x).__name__}{where}; got {type(parts).__name__}")


def _by_name(parts: Any) -> Any:
    """The actions of a dataclass or named tuple as a dict: so are the batches that they move."""
    if dataclasses.is_dataclass(parts):
        return {f.name: getattr(parts, f.name) for f in dataclasses.fields(parts)}
    return parts._asdict() if hasattr(parts, "_asdict") else parts


@checked
def one_sample(function: Function) -> Callable[[Tree], Tree]:
    """f of one graph or one set, as a function of a batch of one.

    `equivariance_error(one_sample(model), batch_of_one(graph), symmetry)`; actions then see a
    leading dimension of length one and index their own dimensions from the end.

    Raises:
        ValueError: when it is called, a tensor of the batch has another leading dimension.

    Example:
        >>> import torch
        >>> one_sample(lambda x: x.sum(0))(torch.ones(1, 3, 2))
        tensor([[3., 3.]])
    """

    def batched(batch: Tree) -> Tree:
        for x in tensors(batch):
            if x.shape[:1] != (1,):
                raise ValueError(
                    f"one_sample takes a batch of one, got a tensor of shape {tuple(x.shape)}; "
                    "make one of a sample by batch_of_one(sample)"
                )
        return batch_of_one(function(on_tensors(lambda x: x[0], batch)))

    return batched


def whole(loss: Callable[[Tree], Tensor]) -> Callable[[Tree], Tensor]:
    """A loss of the outputs of one sample, as a function of a batch of one."""
    return lambda outputs: loss(on_tensors(lambda x: x[0], outputs))


def batch_of_one(tree: Tree) -> Tree:
    """Every tensor with a leading dimension of length one."""
    return on_tensors(lambda x: x[None], tree)


@checked
@dataclass(frozen=True)
class Rebuilt:
    """Moves a batch and makes anew what is derived from it, such as a neighbour list.

    x -> build(S_g x). The batch must be as `build` leaves it, or S_e x = x fails the self-check;
    lists must come in an order that the transformation keeps (by node number, not by distance).

    Args:
        action: on the batch, with any action for the derived part, `trivial` say.
        build: batch -> the same batch with the derived part recomputed.

    Example:
        >>> import torch
        >>> from eqtoolbox.symmetry.actions import flip
        >>> near = lambda b: b | {"near": (b["x"] > 0).nonzero()}
        >>> moved = Rebuilt(Each({"x": flip, "near": trivial}), near)
        >>> moved(True, near({"x": torch.tensor([[1.0, 0.0]])}))["near"]
        tensor([[0, 1]])
    """

    action: Action
    build: Annotated[Callable[[Tree], Tree], takes(1, "of a batch", classes=True)]

    def __call__(self, g: Element, x: Tree) -> Tree:
        return self.build(self.action(g, x))

    def tangent(self, generator: Direction, x: Tree) -> Tree:
        """That of the action: small steps change no neighbours."""
        return tangent_of(self.action, generator, x)

    def inside(self, x: Tree) -> Tree:
        """As the action itself."""
        return inside_of(self.action, x)


@checked
def factor(index: int, action: Action) -> Action:
    """The action of one factor of a Product (or Semidirect) group; the others do nothing.

    Example:
        >>> import torch
        >>> from eqtoolbox.symmetry.actions import flip
        >>> factor(1, flip)((3, True), torch.tensor([[1, 2]]))
        tensor([[2, 1]])
    """
    return trivial if action is trivial else Factor(index, action)


@dataclass(frozen=True)
class Factor:
    """See `factor`."""

    index: int
    action: Action

    def __call__(self, g: Element, x: Tree) -> Tree:
        return self.action(g[self.index], x)

    def tangent(self, generator: Direction, x: Tree) -> Tree:
        """That of the action along its own factor, zero along the others."""
        own = generator[self.index]
        return tangent_of(trivial if own is None else self.action, own, x)

    def inside(self, x: Tree) -> Tree:
        """As the action itself."""
        return inside_of(self.action, x)


@checked
@dataclass(frozen=True)
class Chain:
    """Actions one after the other, the last one first: x -> a(b(c x)), as in a product of groups.

    Example:
        >>> import torch
        >>> from eqtoolbox.symmetry.actions import flip, roll
        >>> both = Chain(factor(0, roll), factor(1, flip))
        >>> both(((0, 1), True), torch.tensor([[1, 2, 3]]))
        tensor([[1, 3, 2]])
    """

    actions: tuple[Action, ...]

    def __init__(self, *actions: Action) -> None:
        object.__setattr__(self, "actions", actions)

    def __call__(self, g: Element, x: Tree) -> Tree:
        for action in reversed(self.actions):
            x = action(g, x)
        return x

    def tangent(self, generator: Direction, x: Tree) -> Tree:
        """The sum of those of the parts, each at x: at the identity they do not see each other."""
        parts = [tangent_of(action, generator, x) for action in self.actions]
        return tree_map(lambda *leaves: sum(leaves) if _moves(leaves[0]) else leaves[0], *parts)

    def inside(self, x: Tree) -> Tree:
        """Inside of every part."""
        for action in self.actions:
            x = inside_of(action, x)
        return x


def _moves(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
