"""A stack: tensors of equal shape side by side at several points, so that one operation serves all.

Stacks are small and follow each other through the same memory, which stays in the cache.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Pair = tuple[int, int]  # two points of a stack
ENTRIES = 2**17  # of one stack at one point, unless a single tensor has more


class StackLayout:
    """Which tensors lie in which stack, at least in float32."""

    def __init__(self, names: Iterable[str], like: Parameters) -> None:
        shapes: dict[torch.Size, list[str]] = {}
        self.dtype, self.device = torch.float32, torch.device("cpu")
        for name in names:
            shapes.setdefault(like[name].shape, []).append(name)
            self.dtype = torch.promote_types(self.dtype, like[name].dtype)
            self.device = like[name].device
        self.groups: list[tuple[torch.Size, list[str]]] = []
        for shape, members in shapes.items():
            some = max(1, ENTRIES // max(shape.numel(), 1))
            self.groups += [(shape, members[i : i + some]) for i in range(0, len(members), some)]
        self.place = {
            name: (number, index)
            for number, (_, members) in enumerate(self.groups)
            for index, name in enumerate(members)
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points of parameter space; the last may be given by where it leads from the first."""

    given: tuple[Parameters | None, ...]  # None for zero
    update: bool = False  # whether the last one counts as its difference to the first

    def of(self, point: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Single tensors, at least in float32."""
        tensors, first = self.given[point], self.given[0]
        assert first is not None, "the first point is where everything starts"
        if tensors is None:
            return {n: torch.zeros_like(_wide(first[n])) for n in names}
        if self.update and point == len(self.given) - 1:
            return {n: _wide(tensors[n]) - _wide(first[n]) for n in names}
        return {n: _wide(tensors[n]) for n in names}


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """One stack at all points; products lie in memory that the next one writes over, if any."""

    number: int
    whole: Tensor  # (points, tensors, *shape)
    scratch: Tensor | None = None  # (tensors, *shape); without it products can be differentiated

    def product(self, pair: Pair) -> Tensor:
        """Entry by entry: (tensors, *shape)."""
        a, b = pair
        return torch.mul(self.whole[a], self.whole[b], out=self.scratch)

    @property
    def entries(self) -> int:
        """Of one tensor."""
        return self.whole[0, 0].numel()


class Stacks:
    """Memory for all stacks of a layout, one after the other.

    Memory that is kept costs no page faults at the next step, which on a CPU take longer than
    the copy.
    """

    def __init__(self, layout: StackLayout, points: int, dtype: torch.dtype | None = None) -> None:
        self.layout = layout
        largest = max(len(names) * shape.numel() for shape, names in layout.groups)
        memory = torch.empty(points + 1, largest, dtype=dtype or layout.dtype, device=layout.device)
        self._stacks: list[tuple[Stack, list[str], list[list[Tensor]]]] = []
        for number, (shape, names) in enumerate(layout.groups):
            made = memory[:, : len(names) * shape.numel()].view(-1, len(names), *shape)
            stack = Stack(number=number, whole=made[:points], scratch=made[points])
            self._stacks.append((stack, names, [list(point) for point in made[:points]]))

    def over(self, points: Points) -> Iterator[Stack]:
        """Every stack, filled."""
        last = len(points.given) - 1
        for stack, names, views in self._stacks:
            for i, tensors in enumerate(points.given):
                if tensors is None:
                    stack.whole[i].zero_()
                else:
                    torch._foreach_copy_(views[i], [tensors[n] for n in names])
            if points.update:
                stack.whole[last].sub_(stack.whole[0])
            yield stack


def fresh(layout: StackLayout, points: Points) -> Iterator[Stack]:
    """Every stack in float64 and in memory of its own: differentiable by the points."""
    for number, (_, names) in enumerate(layout.groups):
        given = [points.of(i, names) for i in range(len(points.given))]
        whole = torch.stack([torch.stack([of[n].double() for n in names]) for of in given])
        yield Stack(number=number, whole=whole)


def pieces(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Moments of all stacks as one: (pairs, ...), float64."""
    return torch.cat([row for of in rows for row in of], 1).double()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
