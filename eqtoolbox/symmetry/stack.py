"""A stack: points of parameter space, flat, tensors of equal shape side by side.

One operation then serves all tensors of a shape and all points at once.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from eqtoolbox.symmetry.parameter import Parameters

Pair = tuple[int, int]  # two points of a stack


class Layout:
    """Where each tensor lies: those of one shape side by side, at least in float32."""

    def __init__(self, names: Iterable[str], like: Parameters) -> None:
        groups: dict[torch.Size, list[str]] = {}
        dtype, self.device = torch.float32, torch.device("cpu")
        for name in names:
            groups.setdefault(like[name].shape, []).append(name)
            dtype, self.device = torch.promote_types(dtype, like[name].dtype), like[name].device
        self.dtype = dtype
        self.groups = list(groups.items())
        self.place = {
            name: (number, index)
            for number, (_, members) in enumerate(self.groups)
            for index, name in enumerate(members)
        }
        self.starts = [0, *accumulate(len(names) * s.numel() for s, names in self.groups)]
        self.names = list(self.place)


class Stack:
    """Several points, (points, all entries); filling a point writes over it.

    Memory that is kept costs no page faults at the next step, which on a CPU take longer than
    the copy.
    """

    def __init__(self, layout: Layout, points: int, dtype: torch.dtype | None = None) -> None:
        self.layout = layout
        self.flat = torch.empty(
            points, layout.starts[-1], dtype=dtype or layout.dtype, device=layout.device
        )
        self.whole = [  # (points, tensors of the shape, *shape)
            self.flat[:, start : start + len(names) * shape.numel()].view(
                points, len(names), *shape
            )
            for (shape, names), start in zip(layout.groups, layout.starts, strict=False)
        ]
        self._views = [
            [self.whole[g][point, i] for g, i in layout.place.values()] for point in range(points)
        ]
        self._scratch: Tensor | None = None

    def fill(self, point: int, tensors: Parameters) -> None:
        """Copy these tensors in."""
        names = self.layout.names
        torch._foreach_copy_(self._views[point], [tensors[n] for n in names])

    def of(self, point: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Views of single tensors of a point by name."""
        place = self.layout.place
        return {n: self.whole[place[n][0]][point, place[n][1]] for n in names}

    def products(self, number: int, pairs: Sequence[Pair]) -> Tensor:
        """Entry by entry of one shape's tensors: (pairs, tensors, *shape), until the next call."""
        whole = self.whole[number]
        size = len(pairs) * whole[0].numel()
        if self._scratch is None or len(self._scratch) < size:
            self._scratch = whole.new_empty(size)
        made = self._scratch[:size].view(len(pairs), *whole.shape[1:])
        for out, (a, b) in zip(made, pairs, strict=True):
            torch.mul(whole[a], whole[b], out=out)
        return made
