"""A stack: tensors of equal shape side by side, so that one operation serves all of them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from eqtoolbox.symmetry.parameter import Parameters

Key = tuple[torch.Size, torch.dtype, torch.device]


class Layout:
    """Which tensors lie in which stack: those of one shape, type and device."""

    def __init__(self, names: Iterable[str], like: Parameters) -> None:
        groups: dict[Key, list[str]] = {}
        for name in names:
            t = like[name]
            groups.setdefault((t.shape, t.dtype, t.device), []).append(name)
        self.groups = list(groups.items())
        self.place = {
            name: (number, index)
            for number, (_, members) in enumerate(self.groups)
            for index, name in enumerate(members)
        }

    def stack(self, tensors: Parameters) -> "Stack":
        """A stack of its own memory, filled."""
        made = Stack(self)
        made.fill(tensors)
        return made


class Stack:
    """One copy of the tensors of a layout, at least in float32; `fill` writes over it.

    Memory that is kept costs no page faults at the next step, which on a CPU take longer than
    the copy.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.whole = [
            torch.empty(
                (len(names), *shape), dtype=torch.promote_types(dtype, torch.float32), device=device
            )
            for (shape, dtype, device), names in layout.groups
        ]
        self._views = {n: self.whole[g][i] for n, (g, i) in layout.place.items()}

    def fill(self, tensors: Parameters) -> None:
        """Copy these tensors in."""
        names = list(self._views)
        torch._foreach_copy_([self._views[n] for n in names], [tensors[n] for n in names])

    def subtract(self, other: "Stack") -> None:
        """Take another stack's numbers from one's own."""
        torch._foreach_sub_(self.whole, other.whole)

    def of(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Views of single tensors by name."""
        return {n: self._views[n] for n in names}
