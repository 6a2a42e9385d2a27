"""A sketch: a few random elements of large matrix algebras instead of all of them.

Laws and charges are linear in the generator, so that random elements s_a s_b^T speak for a block's
whole gl(d): with independent signs in s, E <s_a s_b^T, S>^2 = |S|^2 (Frobenius) for a != b. The
elements act within the axis alone, so that each one's law and charge are exact.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqtoolbox.weights.forms.form import Moments, Owners, each
from eqtoolbox.weights.forms.gram import Gram, Grams
from eqtoolbox.weights.forms.stack import Pair, Points, Stack, StackLayout

PROJECTIONS = 4  # random vectors s of each block


@dataclass(frozen=True, kw_only=True, eq=False)
class SketchSlots:
    """One axis of the tensors of a shape, cut into stretches of d, each mixed by one block."""

    number: int  # of the shape in the stack
    axis: int
    taken: Tensor | None  # indices along the axis, where they are no stretches by themselves
    block: Tensor  # (stacked, slots)
    sign: Tensor  # (stacked, slots), 0 where nothing mixes


class Sketch(Moments):
    """Forms of all matrices of one size d, by k random vectors of signs for each block.

    Charges are s_a^T D s_b / 2 for a < b, over the root of how many a block has, and slopes
    s_a^T S s_b for a != b alike: sums of their squares, and inner products of such vectors, are
    unbiased estimates of those of all charges along orthonormal matrices, and of all slopes.
    """

    def __init__(self, forms: Sequence[Any], layout: StackLayout) -> None:
        self.forms: Sequence[Gram] = forms
        self.whole = Grams(forms, layout)
        self.size, self.blocks, k = self.whole.size, self.whole.blocks, PROJECTIONS
        rng = torch.Generator().manual_seed(0)
        signs = torch.randint(2, (self.blocks, k, self.size), generator=rng) * 2 - 1
        self._vectors = signs.to(layout.dtype)
        self._slots = list(_slots(forms, layout))
        self._block = torch.cat([s.block.reshape(-1) for s in self._slots])
        self._sign = torch.cat([s.sign.reshape(-1) for s in self._slots]).double()
        names = [(layout.groups[s.number][1], s.block.shape[1]) for s in self._slots]
        self._owners: Owners = [(n, slots) for of, slots in names for n in of]
        self._upper = torch.triu_indices(k, k, 1)
        first, second = self._upper.numpy()[:, :, None] == np.arange(k)
        self._ends = (first | second).astype(np.float64)  # (pairs, k): which s_a each is of
        self._maps: dict[tuple[int, int, torch.dtype], Tensor] = {}

    @property
    def counts(self) -> list[int]:
        return [f.blocks * self._upper.shape[1] for f in self.forms]

    @property
    def orders(self) -> list[int]:
        return [2 * count for count in self.counts]

    @property
    def units(self) -> Tensor:
        return torch.arange(self.blocks).repeat_interleave(self._upper.shape[1])

    def rows(self, stack: Stack, points: Points, pairs: Sequence[Pair]) -> list[Tensor]:
        """s_a^T X Y^T s_b of every slot: (pairs, slots, k, k) each."""
        found = []
        for part, slots in enumerate(self._slots):
            if slots.number == stack.number:
                seen = self._seen(part, stack)  # (points, slots, k, rest)
                found.append(torch.stack([torch.bmm(seen[a], seen[b].mT) for a, b in pairs]))
        return found

    def pair(self, moments: Tensor) -> Tensor:
        total = self._summed(moments, self._block, self.blocks)
        return self._among(total + total.mT, self._upper, 2.0)

    def slopes(self, moments: Tensor, points: Points, pair: Pair) -> Tensor:
        where = torch.where(self._sign > 0, self._block, self._block + self.blocks)
        both = self._summed(moments[:1], where, 2 * self.blocks)[0]
        plus, minus = both[: self.blocks], both[self.blocks :]
        ordered = torch.cat([self._upper, self._upper.flip(0)], 1)
        return self._among((plus.mT + minus)[None], ordered, 1.0)[0]

    def scales(self, moments: Tensor, points: Points) -> Tensor:
        """Alike within a block, of its exact norm."""
        return self._alike(self.whole.scales(moments, points), self._upper.shape[1])

    def sizes(self, moments: Tensor, points: Points) -> Tensor:
        """Alike within a block, too."""
        return self._alike(self.whole.lengths(moments, points), 2 * self._upper.shape[1])

    def decay(self, moments: Tensor, weights: Mapping[str, float]) -> Tensor:
        own = each(weights, self._owners, moments)[:, None, None]
        return self.pair(moments * own)[0]

    def variance(self, vector: NDArray[np.float64]) -> float:
        """Variance of |vector|^2 as an estimate, for charges or slopes: a jackknife over the s_a.

        Blocks draw their vectors on their own, so that their variances add up.
        """
        k = PROJECTIONS
        squares = np.square(vector).reshape(self.blocks, -1, len(self._ends)).sum(1)
        shares = squares @ self._ends  # (blocks, k): of the pairs that each vector is in
        spread = np.square(shares - shares.mean(1, keepdims=True)).sum()
        return float(spread * (k - 1) / k * (k / (k - 2)) ** 2)

    def _alike(self, entries: Tensor, count: int) -> Tensor:
        norms = torch.linalg.vector_norm(entries.reshape(self.blocks, -1), dim=1)
        return torch.repeat_interleave(norms / math.sqrt(count), count)

    def _among(self, matrices: Tensor, where: Tensor, divisor: float) -> Tensor:
        """Entries of every block over the root of how many they are: (pairs, ...)."""
        chosen = matrices[:, :, where[0], where[1]]
        return torch.flatten(chosen, 1) / (divisor * math.sqrt(where.shape[1]))

    def _summed(self, slots: Tensor, where: Tensor, count: int) -> Tensor:
        """Signed sum over the slots that go to each place: (pairs, count, k, k)."""
        sign = self._sign.to(slots.device)[:, None, None]
        total = slots.new_zeros(len(slots), count, *slots.shape[2:])
        for into, values in zip(total, slots, strict=True):
            into.index_add_(0, where.to(slots.device), values * sign)
        return total

    def _seen(self, part: int, stack: Stack) -> Tensor:
        """s_a^T X of every slot: (points, slots, k, everything but the axis)."""
        slots, d, k = self._slots[part], self.size, PROJECTIONS
        x, many = stack.whole, len(stack.whole)
        if slots.taken is not None:
            x = x.index_select(slots.axis + 2, slots.taken.to(x.device))
        shape, count = x.shape[2:], slots.block.numel()
        first, last = slots.axis == 0, slots.axis == len(shape) - 1
        if first and last:
            vectors = self._map(part, x, many=1, across=False)
            return (vectors * x.reshape(many, count, 1, d)).sum(3, keepdim=True)
        if last:  # one product for all slots of a tensor: side by side in a block-diagonal map
            made = torch.bmm(
                x.reshape(-1, shape[:-1].numel(), shape[-1]),
                self._map(part, x, many=many, across=True),
            )
            return (
                made.view(many, -1, made.shape[1], slots.block.shape[1], k)
                .permute(0, 1, 3, 4, 2)
                .reshape(many, count, k, -1)
            )
        rows = (x if first else x.movedim(slots.axis + 2, 2)).reshape(many * count, d, -1)
        return torch.bmm(self._map(part, x, many=many, across=False), rows).view(many, count, k, -1)

    def _map(self, part: int, like: Tensor, *, many: int, across: bool) -> Tensor:
        """The vectors of every slot for `many` points: (many * slots, k, d), or across an axis."""
        key = part, many, like.dtype
        made = self._maps.get(key)
        if made is None or made.device != like.device:
            block = self._slots[part].block
            vectors = self._vectors.to(like)[block.to(like.device)]  # (stacked, slots, k, d)
            if across:
                made = torch.stack(
                    [
                        torch.block_diag(*own)  # type: ignore[no-untyped-call]
                        for own in vectors
                    ]
                ).mT
            else:
                made = vectors.flatten(0, 1)
            made = self._maps[key] = made.repeat(many, 1, 1).contiguous()
        return made


def _slots(forms: Sequence[Gram], layout: StackLayout) -> list[SketchSlots]:
    """The axes that are mixed, each with what its slots belong to."""
    found: dict[tuple[int, int, tuple[int, ...], int], tuple[Tensor, Tensor]] = {}
    start, d = 0, forms[0].size
    for form in forms:
        for leg in form.legs:
            number, index = layout.place[leg.name]
            shape, names = layout.groups[number]
            flat = leg.positions.reshape(-1, d)
            blocks = start + torch.arange(form.blocks).repeat_interleave(leg.positions.shape[1])
            stretches = torch.equal(flat, flat[:, :1] + torch.arange(d))
            tiles = stretches and shape[leg.axis] % d == 0 and not bool((flat[:, 0] % d).any())
            places = flat[:, 0] // d if tiles else torch.arange(len(flat))
            taken = () if tiles else tuple(flat.reshape(-1).tolist())
            slots = shape[leg.axis] // d if tiles else len(flat)
            again = 0
            while (number, leg.axis, taken, again) in found and bool(
                found[number, leg.axis, taken, again][1][index, places].any()
            ):
                again += 1
            none = torch.zeros(len(names), slots, dtype=torch.long)
            block, sign = found.setdefault((number, leg.axis, taken, again), (none, none.clone()))
            block[index, places], sign[index, places] = blocks, leg.sign
        start += form.blocks
    return [
        SketchSlots(
            number=number,
            axis=axis,
            taken=torch.tensor(taken) if taken else None,
            block=block,
            sign=sign,
        )
        for (number, axis, taken, _), (block, sign) in sorted(
            found.items(), key=lambda item: item[0]
        )
    ]
