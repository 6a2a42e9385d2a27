"""The average of a weight over a group, as a parametrisation: what no element moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from eqtoolbox.enforce.representation import Representation, product

_LETTERS = ("ab", "cd", "ef", "hi")


@dataclass(frozen=True, eq=False)
class Duty:
    """How a weight moves: by the product of one representation for each run of its dimensions."""

    parts: tuple[Representation, ...]

    @property
    def dense(self) -> bool:
        """Whether some part mixes entries."""
        return any(part.matrix is not None for part in self.parts)

    @property
    def rests(self) -> bool:
        """Whether every weight obeys."""
        return all(part.rests for part in self.parts)

    def free(self, elements: Sequence[int]) -> int:
        """Dimension of the weights that all elements leave as they are: mean_g of the trace."""
        traces = torch.stack([part.characters() for part in self.parts]).prod(0)
        return round(float(traces[list(elements)].mean()))

    def at(self, g: int) -> tuple[Tensor, Tensor]:
        """Source and sign of every entry under one element."""
        one = product(
            [Representation(source=p.source[g : g + 1], sign=p.sign[g : g + 1]) for p in self.parts]
        )
        return one.source[0], one.sign[0]

    def same(self, other: "Duty") -> bool:
        """Whether two uses of a weight ask the same of it."""
        mine, its = self.parts, other.parts
        return len(mine) == len(its) and all(a.same(b) for a, b in zip(mine, its, strict=True))


class Average(nn.Module):
    """V -> gain mean_g g V: `gain` times the nearest weight that the elements leave as it is.

    The mean takes from random entries a share of their norm, and n entries that share a value get
    the mean of their gradients and not its sum. A gain of sqrt(entries / free) mends both: the
    norm stays, and under SGD what is free moves as one weight used n times would.

    Entries of one orbit share their mean, so one gather and one scatter do it, whatever |G|.
    Where a part is dense the matrices are multiplied. Buffers are no part of the state.
    """

    members: Tensor  # (orbits, elements): where an orbit's first entry comes from
    orbit: Tensor  # (entries,): the orbit of each
    signs: Tensor | None  # those of `members`, 0 where an entry is its own opposite
    sign: Tensor | None  # those of `orbit`

    def __init__(self, law: Duty, elements: Sequence[int], gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.sizes = [part.size for part in law.parts]
        self.dense = law.dense
        if self.dense:
            for i, part in enumerate(law.parts):
                self._hold(f"matrix{i}", part.of(elements).dense())
            return
        size = prod(self.sizes)
        first = torch.arange(size)
        for g in elements:
            first = torch.minimum(first, law.at(g)[0])
        leaders, orbit = torch.unique(first, return_inverse=True)
        members, signs = torch.empty(2, len(leaders), len(elements), dtype=torch.int64)
        sign = torch.ones(size, dtype=torch.int64)
        for column, g in enumerate(elements):
            source, turned = law.at(g)
            members[:, column], signs[:, column] = source[leaders], turned[leaders].long()
            sign[source[leaders]] = turned[leaders].long()
        signs[((members == leaders[:, None]) & (signs < 0)).any(1)] = 0  # x = -x
        self._hold("members", members.int())
        self._hold("orbit", orbit.int())
        plain = bool((signs == 1).all())
        self._hold("signs", None if plain else signs.to(torch.int8))
        self._hold("sign", None if plain else sign.to(torch.int8))

    def _hold(self, name: str, x: Tensor | None) -> None:
        self.register_buffer(name, x, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The average, of the same shape."""
        return self.mean(weight) * self.gain

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What averages to a weight that obeys."""
        return weight / self.gain

    def mean(self, weight: Tensor) -> Tensor:
        """The average without gain."""
        if self.dense:
            return self._multiplied(weight)
        taken = weight.reshape(-1).index_select(0, self.members.reshape(-1))
        taken = taken.reshape(self.members.shape)
        if self.signs is None:
            made = taken.mean(1).index_select(0, self.orbit)
        else:
            assert self.sign is not None
            made = (taken * self.signs).mean(1).index_select(0, self.orbit) * self.sign
        return made.reshape(weight.shape)

    def _multiplied(self, weight: Tensor) -> Tensor:
        each = [getattr(self, f"matrix{i}").to(weight) for i in range(len(self.sizes))]
        pairs = _LETTERS[: len(each)]
        terms = [f"g{pair}" for pair in pairs] + ["".join(pair[1] for pair in pairs)]
        formula = f"{','.join(terms)}->{''.join(pair[0] for pair in pairs)}"
        made: Tensor = torch.einsum(formula, *each, weight.reshape(self.sizes)) / len(each[0])
        return made.reshape(weight.shape)
