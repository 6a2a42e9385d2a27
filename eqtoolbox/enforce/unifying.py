"""Blocks of entries, some of a representation not chosen yet; made equal where they are added."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from eqtoolbox.enforce.representation import (
    Representation,
    Unfit,
    factors,
    product,
    stacked,
    still,
    summands,
)


@dataclass(eq=False, kw_only=True)
class Unknown:
    """The representation that the outputs of a layer are going to carry."""

    name: str  # of the layer
    size: int
    moved: bool  # whether it must not be the trivial one: its kernel or its inputs move
    order: int  # |G|
    inputs: list["Block"] = field(default_factory=list)
    bound: "Block | None" = None


@dataclass(frozen=True, eq=False)
class Joined:
    """Parts of several dimensions in one, the last one the fastest: a tensor product."""

    parts: tuple["Block", ...]

    @property
    def size(self) -> int:
        """The product of those of the parts."""
        return prod(part.size for part in self.parts)


@dataclass(frozen=True, eq=False)
class Stacked:
    """Parts one after the other in one dimension: a direct sum."""

    parts: tuple["Block", ...]

    @property
    def size(self) -> int:
        """The sum of those of the parts."""
        return sum(part.size for part in self.parts)


Block = Representation | Unknown | Joined | Stacked


def seen(block: Block) -> Block:
    """What an unknown is bound to by now, and products of known ones multiplied out."""
    while isinstance(block, Unknown) and block.bound is not None:
        block = block.bound
    if isinstance(block, Joined | Stacked):
        parts = [seen(part) for part in block.parts]
        if len(parts) == 1:
            return parts[0]
        known = [part for part in parts if isinstance(part, Representation)]
        if len(known) == len(parts):
            return product(known) if isinstance(block, Joined) else stacked(known)
        return type(block)(tuple(parts))
    return block


def moves(block: Block) -> bool:
    """Whether it is certain not to be trivial."""
    block = seen(block)
    if isinstance(block, Representation):
        return not block.rests
    return block.moved if isinstance(block, Unknown) else any(map(moves, block.parts))


def unify(a: Block, b: Block) -> None:
    """Make two blocks one, binding unknowns.

    Raises:
        Unfit: they move differently.
    """
    a, b = seen(a), seen(b)
    if a.size != b.size:
        raise Unfit(f"{a.size} entries meet {b.size}")
    if isinstance(a, Unknown) or isinstance(b, Unknown):
        _bind(a, b)
    elif isinstance(a, Representation) and isinstance(b, Representation):
        if not a.same(b):
            raise Unfit(f"two sets of {a.size} entries meet that the group moves differently")
    elif isinstance(a, Representation):
        unify(b, a)
    else:
        for mine, its in zip(a.parts, _alike(b, a), strict=True):
            unify(mine, its)


def _bind(a: Block, b: Block) -> None:
    if a is b:
        return
    if not isinstance(a, Unknown):
        a, b = b, a
    assert isinstance(a, Unknown)
    for leaf in leaves(b):
        if isinstance(leaf, Representation):
            continue
        if leaf is a:
            raise Unfit("a layer's outputs meet a part of themselves")
        leaf.moved = leaf.moved or a.moved
        leaf.inputs += a.inputs
    a.bound = b


def leaves(block: Block) -> list[Representation | Unknown]:
    """The representations that it is made of."""
    while isinstance(block, Unknown) and block.bound is not None:
        block = block.bound
    if isinstance(block, Representation | Unknown):
        return [block]
    return [leaf for part in block.parts for leaf in leaves(part)]


def _alike(block: Block, pattern: Joined | Stacked) -> list[Block]:
    """The parts of a block, cut as those of another."""
    sizes = [part.size for part in pattern.parts]
    found = pieces(block, sizes) if isinstance(pattern, Joined) else cut(block, sizes)
    if found is None or [p.size for p in found] != sizes:
        raise Unfit(f"{block.size} entries meet others of another structure")
    return found


def pieces(block: Block, sizes: Sequence[int]) -> list[Block] | None:
    """The factors of these sizes of a tensor product; None where it is none."""
    block, sizes = seen(block), list(sizes)
    if len(sizes) == 1:
        return [block]
    if isinstance(block, Representation):
        pair = factors(block, sizes[0])
        rest = None if pair is None else pieces(pair[1], sizes[1:])
        return None if pair is None or rest is None else [pair[0], *rest]
    if isinstance(block, Unknown) and sorted(sizes)[-2] == 1:
        return [block if n == block.size else still(block.order, n) for n in sizes]
    if not isinstance(block, Joined):
        return None
    for count in range(1, len(block.parts)):
        head, tail = Joined(block.parts[:count]), Joined(block.parts[count:])
        for split in range(1, len(sizes)):
            if head.size == prod(sizes[:split]):
                left, right = pieces(head, sizes[:split]), pieces(tail, sizes[split:])
                if left is not None and right is not None:
                    return left + right
    return None


def cut(block: Block, sizes: Sequence[int]) -> list[Block] | None:
    """The summands of these sizes of a direct sum, which an unknown becomes; None if it is none."""
    block, sizes = seen(block), list(sizes)
    if len(sizes) == 1:
        return [block]
    if isinstance(block, Representation):
        found = summands(block, sizes)
        return None if found is None else list(found)
    if isinstance(block, Unknown):
        parts = [
            Unknown(name=block.name, size=n, moved=block.moved, order=block.order) for n in sizes
        ]
        for part in parts:
            part.inputs = list(block.inputs)
        block.bound = Stacked(tuple(parts))
        return list(parts)
    if isinstance(block, Stacked) and [p.size for p in block.parts] == sizes:
        return list(block.parts)
    return None
