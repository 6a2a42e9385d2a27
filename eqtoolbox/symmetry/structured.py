"""Candidate symmetries of structured batches: which leaves could move together, by their shapes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, keystr, tree_flatten_with_path, tree_unflatten

from eqtoolbox.symmetry.actions.action import Action, flip, quarter_turn, roll, trivial
from eqtoolbox.symmetry.actions.linear import positions, vectors
from eqtoolbox.symmetry.actions.permuting import Permute, Relabel
from eqtoolbox.symmetry.actions.scaling import Degree, Parity
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.each import Each
from eqtoolbox.symmetry.groups.finite import Sign, Symmetric
from eqtoolbox.symmetry.groups.group import Cyclic, CyclicTranslation, Flip, Group
from eqtoolbox.symmetry.groups.matrices import Euclidean, Orthogonal
from eqtoolbox.symmetry.groups.unbounded import Scalings
from eqtoolbox.symmetry.structure import Tree

_ALONE = 4  # leaves up to which each is also tried by itself

Choice = Callable[[Tensor], Action | None]  # the action on a leaf of this shape; None: it stays


@dataclass(frozen=True)
class _Side:
    """The leaves of inputs or outputs."""

    names: tuple[str, ...]
    leaves: tuple[object, ...]
    spec: TreeSpec

    @classmethod
    def of(cls, tree: Tree, arguments: Sequence[str] = ()) -> "_Side":
        paths, spec = tree_flatten_with_path(tree)
        names = tuple(_letters(keystr(path), arguments) for path, _ in paths)
        return cls(names, tuple(leaf for _, leaf in paths), spec)

    def fitting(self, choose: Choice) -> dict[int, Action]:
        """The leaves that move, with their actions."""
        tried = {i: choose(x) for i, x in enumerate(self.leaves) if isinstance(x, Tensor)}
        return {i: action for i, action in tried.items() if action is not None}

    def each(self, moving: dict[int, Action]) -> Action:
        """The action on the whole tree; that of a single tensor is its own."""
        actions = [moving.get(i, trivial) for i in range(len(self.leaves))]
        parts = tree_unflatten(actions, self.spec)
        return parts if callable(parts) else Each(parts)


def structured_candidates(
    inputs: Tree, outputs: Tree, arguments: Sequence[str] = (), parts: bool = False
) -> list[Equivariance]:
    """Symmetries whose actions fit the leaves of a structured batch and of its output.

    Sets of n entries are renumbered together, with their adjacency and index lists; vectors of
    two or three components are turned and moved, each leaf alone and all at once; then images,
    signs and scales. Masks and one-hot classes (zeros and ones) only move along.

    Args:
        inputs: a dict, tuple or list of tensors that share the batch size.
        outputs: of the function, a tensor or such a tree.
        arguments: what the entries of a tuple are called; their numbers unless given.
        parts: whether this is a batch of one, made of one whose rows are parts of samples: a row
            of three energies is then no vector.

    Example:
        >>> batch = {"x": torch.rand(2, 5, 3), "charge": torch.rand(2, 5)}
        >>> [c.name for c in structured_candidates(batch, torch.ones(2, 1))][:3]
        ['symmetric5.invariant', 'o3.x.invariant', 'e3.x.invariant']
    """
    given, made = _Side.of(inputs, arguments), _Side.of(outputs)
    found: dict[str, Equivariance] = {}
    for claim in _candidates(given, made, least=3 if parts else 2):
        found.setdefault(claim.name, claim)
    return list(found.values())


def _candidates(given: _Side, made: _Side, least: int) -> Iterator[Equivariance]:
    sets = [x for x in given.leaves if isinstance(x, Tensor) and _floats(x) and x.dim() == 3]
    for n in sorted({x.shape[1] for x in sets if x.shape[1] > 1}):
        moving = given.fitting(lambda x, n=n: _renumbered(x, n, relabel=True))  # type: ignore[misc]
        after = made.fitting(lambda x, n=n: _renumbered(x, n, relabel=False))  # type: ignore[misc]
        yield from _pair(Symmetric(n), given, moving, made, after, f"symmetric{n}")
    for d in (2, 3):
        turned = given.fitting(lambda x, d=d: _vectors(x, d, vectors, least))  # type: ignore[misc]
        carried = given.fitting(lambda x, d=d: _vectors(x, d, positions, 3))  # type: ignore[misc]
        after = made.fitting(lambda x, d=d: _vectors(x, d, vectors, least))  # type: ignore[misc]
        for word, some in _choices(given, turned):
            yield from _pair(Orthogonal(d), given, some, made, after, f"o{d}.{word}")
        for word, some in _choices(given, carried):
            rest = {i: a for i, a in turned.items() if i not in some}
            yield from _pair(Euclidean(d), given, some, made, after, f"e{d}.{word}")
            if rest:  # velocities and fields turn and are not carried along
                both = some | rest
                yield from _pair(Euclidean(d), given, both, made, after, f"e{d}.{word}-and-turned")
    for group, action in _grids(given):
        moving = given.fitting(lambda x, a=action: a if _image(x) else None)  # type: ignore[misc]
        after = made.fitting(lambda x, a=action: a if _image(x) else None)  # type: ignore[misc]
        yield from _pair(group, given, moving, made, after, group.name)
    signed = given.fitting(lambda x: Parity() if _floats(x) else None)
    odd = made.fitting(lambda _: Parity())
    for word, some in _choices(given, signed):
        claim = Equivariance(Sign(), given.each(some), made.each({}), name=f"sign.{word}.even")
        yield claim
        yield Equivariance(Sign(), given.each(some), made.each(odd), name=f"sign.{word}.odd")
    scaled = given.fitting(lambda x: Degree(1) if _floats(x) else None)
    for degree in (0, 1, 2) if scaled else ():
        after = made.fitting(lambda _, k=degree: Degree(k))  # type: ignore[misc]
        name = f"scalings.degree{degree}"
        yield Equivariance(Scalings(), given.each(scaled), made.each(after), name=name)


def _pair(
    group: Group,
    given: _Side,
    moving: dict[int, Action],
    made: _Side,
    after: dict[int, Action],
    name: str,
) -> Iterator[Equivariance]:
    if not moving:
        return
    act = given.each(moving)
    yield Equivariance(group, act, made.each({}), name=f"{name}.invariant")
    if after:
        yield Equivariance(group, act, made.each(after), name=f"{name}.equivariant")


def _choices(side: _Side, moving: dict[int, Action]) -> Iterator[tuple[str, dict[int, Action]]]:
    """All leaves at once, and each alone where they are few."""
    if len(moving) > 1:
        yield "all", moving
    if len(moving) <= _ALONE:
        for i, action in moving.items():
            yield side.names[i], {i: action}


def _renumbered(x: Tensor, n: int, *, relabel: bool) -> Action | None:
    if x.dim() >= 2 and x.shape[1] == n:
        return Permute(1, 2) if x.dim() == 3 and x.shape[2] == n else Permute(1)
    indices = not x.is_floating_point() and x.dtype != torch.bool and x.dim() == 3
    pairs = indices and 2 in x.shape[1:] and x.numel() > 0 and int(x.min()) >= -1
    return Relabel() if relabel and pairs and int(x.max()) < n else None


def _vectors(x: Tensor, d: int, action: Action, least: int) -> Action | None:
    fits = _floats(x) and least <= x.dim() <= 3 and x.shape[-1] == d
    return action if fits else None


def _grids(given: _Side) -> Iterator[tuple[Group, Action]]:
    """Groups of the images, where all have one size."""
    sizes = {tuple(x.shape[-2:]) for x in given.leaves if isinstance(x, Tensor) and _image(x)}
    if len(sizes) == 1:
        ((height, width),) = sizes
        if height == width:
            yield Cyclic(4), quarter_turn
        yield Flip(), flip
        yield CyclicTranslation((height, width)), roll


def _image(x: Tensor) -> bool:
    return x.dim() == 4 and _floats(x)


def _floats(x: Tensor) -> bool:
    """Whether x holds measured numbers, not a mask or one-hot classes."""
    return x.is_floating_point() and not bool(((x == 0) | (x == 1)).all())


def _letters(path: str, arguments: Sequence[str]) -> str:
    words = "".join(c if c.isalnum() or c in "_-" else " " for c in path).split()
    if words and words[0].isdigit() and int(words[0]) < len(arguments):
        words[0] = arguments[int(words[0])]
    return ".".join(words) or "x"
