"""Activity: what units compute and what reads them sees, on the data of one evaluation.

A gradient cannot tell a dead layer from one whose successor is dead: both are given none. What
flows into a matrix product or a convolution can.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Axis = tuple[str, int]  # a parameter and one of its axes

_FACTORS = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2), "mv": (0, 1)}


@dataclass
class Activity:
    """Largest |entry| over the data, by index of a parameter's axis, of one or more evaluations."""

    read: dict[Axis, Tensor] = field(default_factory=dict)  # what a contraction over it is given
    made: dict[Axis, Tensor] = field(default_factory=dict)  # what a product gives along it

    @classmethod
    def of(cls, run: Callable[[], Any], params: Mapping[str, Tensor]) -> "Activity":
        """Run a function of these very tensors, and note what flows into and out of them.

        Example:
            >>> w = torch.ones(2, 3)
            >>> seen = Activity.of(lambda: torch.tensor([[0.0, 1.0, -2.0]]) @ w.T, {"w": w})
            >>> seen.read["w", 1].tolist(), seen.made["w", 0].tolist()
            ([0.0, 1.0, 2.0], [1.0, 1.0])
        """
        seen = cls()
        with torch.no_grad(), _Watch(params, seen):
            run()
        return cls(_at_home(seen.read), _at_home(seen.made))

    def _note(self, table: dict[Axis, Tensor], axis: Axis, largest: Tensor) -> None:
        known = table.get(axis)
        table[axis] = largest if known is None else torch.maximum(known, largest)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the products in which a parameter is a factor."""

    def __init__(self, params: Mapping[str, Tensor], seen: Activity) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {p.untyped_storage().data_ptr(): n for n, p in params.items()}
        self.params, self.seen = params, seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in _FACTORS:
            first, second = (args[k] for k in _FACTORS[name])
            inner = second.dim() - 2 if second.dim() > 1 else 0
            self._factor(second, first, (inner, first.dim() - 1), (-1, -1), result)
            rows = -2 if result.dim() > 1 else -1
            self._factor(first, second, (first.dim() - 1, inner), (-2, rows), result)
        elif name == "convolution":
            x, weight, transposed, groups = args[0], args[1], args[6], args[8]
            contracted = (0 if transposed else 1, 1) if groups == 1 else None
            self._factor(weight, x, contracted, (1 if transposed else 0, 1), result)
        return result

    def _factor(
        self,
        factor: Tensor,
        other: Tensor,
        contracted: tuple[int, int] | None,
        kept: tuple[int, int],
        result: Tensor,
    ) -> None:
        """Note a product; dimensions of the factor are given with those of its partner."""
        name = self.names.get(factor.untyped_storage().data_ptr())
        if name is None or factor.dim() < 2:
            return
        if contracted is not None:
            for axis in self._axes(name, factor, contracted[0]):
                self.seen._note(self.seen.read, (name, axis), _largest(other, contracted[1]))
        for axis in self._axes(name, factor, kept[0]):
            self.seen._note(self.seen.made, (name, axis), _largest(result, kept[1]))

    def _axes(self, name: str, factor: Tensor, dim: int) -> Iterator[int]:
        """The axis of the parameter that a dimension of a view of it is, if it is a whole one."""
        whole = self.params[name]
        if factor.numel() == 0 or factor.storage_offset() != whole.storage_offset():
            return
        for axis in range(whole.dim()):
            same = whole.shape[axis] == factor.shape[dim]
            if same and whole.stride(axis) == factor.stride(dim):
                yield axis
                return


def _largest(x: Tensor, dim: int) -> Tensor:
    """Largest |entry| by index of one dimension."""
    if x.numel() == 0:
        return x.new_zeros(x.shape[dim])
    rows = x.detach().movedim(dim, 0).reshape(x.shape[dim], -1)
    return rows.abs().amax(1)


def _at_home(table: Mapping[Axis, Tensor]) -> dict[Axis, Tensor]:
    """In float64 on the CPU, once all of it is computed."""
    return {axis: largest.cpu().double() for axis, largest in table.items()}
