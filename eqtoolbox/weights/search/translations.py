"""Shifts: translations, compensations and bias shifts, proposed from a trace and from gradients."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from eqtoolbox.weights.families.translation import Translation
from eqtoolbox.weights.forms.linear import Term, column_sums, shift
from eqtoolbox.weights.tracing.trace import Trace, layer_name

_ZERO = 1e-9  # gradient sums below this share of the largest entry count as zero


class TranslationSearch:
    """Shifts to which the gradient is orthogonal to rounding, while it comes in pieces.

    Tried are: each entry of a vector, all indices of an axis together, and the groups of group
    normalisations. Whether they are symmetries is for the finite check to say.
    """

    def __init__(self, trace: Trace) -> None:
        counts = {n.args[6] for n in trace.nodes if n.name == "native_group_norm"} | {1}
        self.counts = sorted(counts, reverse=True)
        self.vectors: dict[str, Tensor] = {}  # gradients of one axis, kept
        self.columns: dict[str, Tensor] = {}  # sums over all axes but the last
        self._order = list(trace.parameters)
        self._shifts: dict[str, Term] = {}
        self._largest = 0.0

    def add(self, gradient: Mapping[str, Tensor]) -> None:
        """Take one piece of the gradient into account."""
        for name, g in gradient.items():
            if not g.numel():
                continue
            low, high = map(float, g.aminmax())
            if g.dim():
                self.columns[name] = column_sums(g)
            self._largest = max(self._largest, high, -low)
            if g.dim() == 1:
                self.vectors[name] = g
            elif g.dim() and (high or low):
                found = self._of_groups(name, g, max(high, -low))
                if found is not None:
                    self._shifts[name] = found

    def in_order(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By parameter, in the model's order and not in that of the backward."""
        return {name: found[name] for name in self._order if name in found}

    def proposals(self) -> Iterator[Translation]:
        """One proposal a layer."""
        layers: dict[str, list[Term]] = {}
        for name in self._order:
            found = self._shifts.get(name)
            if found is None and name in self.vectors:
                found = self._of_vector(name, self.vectors[name])
            if found is not None:
                layers.setdefault(layer_name(name), []).append(found)
        for layer, shifts in layers.items():
            dimension = sum(s.count for s in shifts)
            yield Translation(name=layer, dimension=dimension, shifts=tuple(shifts))

    def _of_vector(self, name: str, g: Tensor) -> Term | None:
        if not bool(g.any()):
            return None
        zero = g.abs() <= _ZERO * self._largest
        if bool(zero.any()) and g.numel() > 1:
            groups = torch.where(zero, zero.long().cumsum(0) - 1, -1)
            return shift(name, g.shape, 0, groups.cpu(), int(zero.sum()))
        return self._of_groups(name, g, float(g.abs().max()))

    def _of_groups(self, name: str, g: Tensor, largest: float) -> Term | None:
        for axis in range(min(g.dim(), 3)):
            for count in self.counts:
                length = g.shape[axis]
                if length == count or length % count:
                    continue
                if (count, axis, g.dim()) == (1, 0, 2):
                    sums = self.columns[name]
                else:
                    blocks = g.reshape(*g.shape[:axis], count, -1, *g.shape[axis + 1 :])
                    sums = blocks.sum(axis + 1, dtype=torch.float64)
                if float(sums.abs().max()) <= _ZERO * largest:
                    groups = torch.arange(count).repeat_interleave(length // count)
                    return shift(name, g.shape, axis, groups, count)
        return None
