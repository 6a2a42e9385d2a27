"""How a tensor bears the group: one block of entries for each run of its dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from eqtoolbox.enforce.representation import Representation, Unfit, still
from eqtoolbox.enforce.unifying import Block, Joined, moves, pieces, seen, unify

Part = tuple[Block, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Bearing:
    """Blocks of a sample's dimensions, in order; the group moves the sample by their product."""

    order: int  # |G|
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, order: int, *parts: Part) -> "Bearing":
        """With every block cut into as many dimensions as it can be."""
        return cls(order, tuple(p for block, shape in parts for p in _finest(block, shape)))

    @classmethod
    def still(cls, order: int, shape: Sequence[int]) -> "Bearing":
        """Of what the group leaves alone."""
        return cls(order, tuple((still(order, n), (n,)) for n in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample."""
        return tuple(n for _, shape in self.parts for n in shape)

    @property
    def block(self) -> Block:
        """All entries as one block, multiplied out as far as it is known."""
        return seen(self.factors)

    @property
    def factors(self) -> Block:
        """All entries as one block that remembers what it is made of."""
        blocks = tuple(block for block, _ in self.parts)
        return Joined(blocks) if blocks else still(self.order, 1)

    @property
    def blocks(self) -> list[Block]:
        """As far as they are known by now."""
        return [seen(block) for block, _ in self.parts]

    @property
    def rests(self) -> bool:
        """Whether nothing is known to move."""
        return not any(moves(block) for block, _ in self.parts)

    def __add__(self, other: "Bearing") -> "Bearing":
        """The dimensions of one after those of the other."""
        return Bearing(self.order, self.parts + other.parts)

    def split(self, at: int) -> tuple["Bearing", "Bearing"]:
        """The first so many dimensions, and the others.

        Raises:
            Unfit: the group moves them together.
        """
        left: list[Part] = []
        right = list(self.parts)
        while at > 0:
            block, shape = right.pop(0)
            if len(shape) > at:
                found = pieces(block, [prod(shape[:at]), prod(shape[at:])])
                if found is None:
                    raise Unfit(f"the group moves dimensions of sizes {shape} together")
                right.insert(0, (found[1], shape[at:]))
                block, shape = found[0], shape[:at]
            left.append((block, shape))
            at -= len(shape)
        return Bearing(self.order, tuple(left)), Bearing(self.order, tuple(right))

    def around(self, dim: int, count: int = 1) -> tuple["Bearing", "Bearing", "Bearing"]:
        """What is before `count` dimensions from `dim` on, these, and what is behind."""
        left, rest = self.split(dim)
        return left, *rest.split(count)

    def reshaped(self, shape: Sequence[int]) -> "Bearing":
        """The same entries under another shape."""
        made, rest = Bearing(self.order, ()), self
        for here, there in _segments(self.shape, tuple(shape)):
            head, rest = rest.split(here)
            made += Bearing.of(self.order, (head.factors, there))
        return made

    def permuted(self, dims: Sequence[int]) -> "Bearing":
        """Dimensions in another order."""
        starts = [sum(len(s) for _, s in self.parts[:i]) for i in range(len(self.parts))]
        made: list[Part] = []
        todo = list(dims)
        while todo:
            which = max(i for i, start in enumerate(starts) if start <= todo[0])
            block, shape = self.parts[which]
            run = [starts[which] + i for i in range(len(shape))]
            inner, todo = todo[: len(run)], todo[len(run) :]
            if sorted(inner) != run:
                raise Unfit(f"the group moves dimensions of sizes {shape} together")
            made.append(_turned(block, shape, [d - starts[which] for d in inner]))
        return Bearing(self.order, tuple(made))

    def unify(self, other: "Bearing") -> None:
        """Make two bearings of one shape the same, binding unknowns.

        Raises:
            Unfit: they move differently.
        """
        if self.shape != other.shape:
            raise Unfit(f"shapes {self.shape} and {other.shape} meet")
        ends = [_ends(self), _ends(other)]
        common = [0, *sorted(set(ends[0]) & set(ends[1]))]
        mine, its = self, other
        for start, end in pairwise(common):
            (a, mine), (b, its) = mine.split(end - start), its.split(end - start)
            unify(a.block, b.block)


def permuting(bearing: Bearing, what: str) -> None:
    """Demand that entries only change places.

    Raises:
        Unfit: signs change, or entries are mixed.
    """
    for block in bearing.blocks:
        if isinstance(block, Representation) and not block.permutes:
            raise Unfit(f"{what} does not commute with entries that change sign or are mixed")


def _finest(block: Block, shape: tuple[int, ...]) -> tuple[Part, ...]:
    for at in range(1, len(shape)):
        found = pieces(block, [prod(shape[:at]), prod(shape[at:])])
        if found is not None:
            return (*_finest(found[0], shape[:at]), *_finest(found[1], shape[at:]))
    return ((block, shape),)


def _segments(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """Runs of old dimensions, each as a count, and the new ones that hold the same entries."""
    found: list[tuple[int, tuple[int, ...]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while prod(old[a:i]) != prod(new[b:j]):
            if prod(old[a:i]) < prod(new[b:j]):
                i += 1
            else:
                j += 1
        found.append((i - a, new[b:j]))
    return found


def _ends(bearing: Bearing) -> list[int]:
    return [sum(len(s) for _, s in bearing.parts[: i + 1]) for i in range(len(bearing.parts))]


def _turned(block: Block, shape: tuple[int, ...], dims: list[int]) -> Part:
    """A block of several dimensions that are put in another order."""
    if dims == sorted(dims):
        return block, shape
    known = seen(block)
    if not isinstance(known, Representation) or known.matrix is not None:
        raise Unfit(f"the group moves dimensions of sizes {shape} together")
    order = still(1, known.size).source.reshape(shape).permute(dims).flatten()
    where = order.argsort()
    moved = Representation(source=where[known.source[:, order]], sign=known.sign[:, order])
    return moved, tuple(shape[d] for d in dims)
