"""Histograms of weights and of their gradients."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count
from eqtoolbox.record.bins import BINS, edges, packed
from eqtoolbox.record.record import Mode
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot

AT_ONCE = 1 << 22  # entries that are sorted into bins at a time


@checked
@dataclass(frozen=True, kw_only=True)
class Histograms(Probe):
    """How the entries of each weight, and of its gradient, are spread: 64 bins on both sides of 0.

    weight, gradient: largest magnitude of the parameters before the step, and of the gradient that
    the optimizer was given, with the histogram as the record's array: (2, 65), the edges of
    `eqtoolbox.record.bins` in the first row, counts and a 0 in the second. They are symmetric and
    spaced by equal factors over six decades below that magnitude, with two bins around 0. Where
    entries are not finite there is no largest; they are in no bin, and the fact `not_finite`
    counts them.

    Nothing is evaluated: a due step costs two passes over what is drawn.

    Args:
        largest: how many parameters, of those with two dimensions and more, those with most
            entries first; the others come after them.

    Example:
        >>> Histograms(largest=8).largest
        8
    """

    name: ClassVar[str] = "histogram"
    headline: ClassVar[str] = "weight"
    mode: ClassVar[Mode] = "train"
    evaluates: ClassVar[bool] = False

    largest: Count = 32

    def measure(
        self, snapshot: Snapshot, reference: None, rng: torch.Generator
    ) -> Iterator[Measurement]:
        before = snapshot.before
        order = sorted(before, key=lambda n: (before[n].dim() < 2, -before[n].numel()))
        drawn = [n for n in order if before[n].numel()][: self.largest]
        if not drawn:
            raise NotApplicable("no parameter has an entry")
        yield from _spread("weight", before, drawn)
        if snapshot.gradient is not None:
            used = [n for n in drawn if n in snapshot.gradient]
            yield from _spread("gradient", snapshot.gradient, used)


def _spread(quantity: str, given: Mapping[str, Tensor], names: list[str]) -> Iterator[Measurement]:
    for name in names:
        parts = _parts(given[name])
        largest = max(float(part.abs().nan_to_num(0.0, 0.0).max()) for part in parts)
        at = edges(largest)
        counts = sum((_counts(part, torch.from_numpy(at)) for part in parts), torch.zeros(BINS))
        lost = sum(part.numel() for part in parts) - int(counts.sum())
        vector = packed(counts.numpy(), at)
        if lost:
            note, facts = f"{lost} entries are not finite", {"not_finite": lost}
            how: dict[str, Any] = {"status": "non_finite", "note": note, "facts": facts}
            yield Measurement(quantity, math.nan, name, vector=vector, **how)
        else:
            yield Measurement(quantity, largest, name, vector=vector)


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The entries, real and imaginary ones alike, as flat pieces of bounded size."""
    real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    return torch.split(real.flatten(), AT_ONCE)


def _counts(part: Tensor, at: Tensor) -> Tensor:
    """Entries in each bin [e_k, e_k+1), the last one closed, as np.histogram has them; (64,)."""
    wide = part[part.isfinite()].double()
    where = torch.bucketize(wide, at.to(wide), right=True, out_int32=True) - 1
    return torch.bincount(where.clamp_(0, BINS - 1), minlength=BINS).double().cpu()
