"""Forms through maps: a bias moved into the biases behind linear maps, which K depends on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.weights.forms.form import Form, Moments, Spread
from eqtoolbox.weights.forms.maps import Reader
from eqtoolbox.weights.forms.stack import Pair, Parameters, Points, Stack, StackLayout


@dataclass(frozen=True, kw_only=True, eq=False)
class Through(Form):
    """b -> b + u, b_o -> b_o - M u for every reader, M the product of the maps before it; no Q."""

    quadratic = False
    source: str
    offset: int  # first entry of the source that moves; `dimension` of them do
    readers: tuple[Reader, ...]
    balance: str = "bias zero"

    @property
    def names(self) -> tuple[str, ...]:
        maps = [m.name for r in self.readers for m in r.maps]
        return tuple(dict.fromkeys([self.source, *(r.bias for r in self.readers), *maps]))

    @property
    def charges(self) -> int:
        return 0

    def own(self, tensors: Parameters) -> Tensor:
        """The entries of the source that move."""
        return tensors[self.source][self.offset : self.offset + self.dimension]

    def tangent(self, tensors: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        total = {n: torch.zeros_like(tensors[n]) for n in self.names}
        whole = torch.zeros_like(tensors[self.source])
        whole[self.offset : self.offset + self.dimension] = coefficients.to(whole)
        total[self.source] = total[self.source] + whole
        for r in self.readers:
            total[r.bias] = total[r.bias] - r.along(tensors, coefficients)[-1].to(total[r.bias])
        return total

    def pullback(
        self, tensors: Parameters, coefficients: Tensor, cotangent: Parameters
    ) -> dict[str, Tensor]:
        total = {n: torch.zeros_like(cotangent[n]) for n in self.names}
        for r in self.readers:
            vectors = r.along(tensors, coefficients.to(cotangent[r.bias]))
            pulled = r.back(tensors, cotangent[r.bias])
            for m, before, after in zip(r.maps, vectors, pulled[1:], strict=False):
                total[m.name] = total[m.name] - m.by_weight(before, after)
        return total

    @classmethod
    def together(cls, forms: Sequence["Through"], layout: StackLayout) -> "Throughs":
        return Throughs(forms, layout)


class Throughs(Moments):
    """Laws of bias shifts, <K_j, g> = (entry j of g_b) - (M^T g_o)_j of every reader; no charges.

    Readers behind a single matrix of one shape are evaluated together, others one by one.
    """

    def __init__(self, forms: Sequence[Through], layout: StackLayout) -> None:
        self.forms: Sequence[Through] = forms
        self._readers: dict[int, dict[int, list[tuple[int, str]]]] = {}  # stack, inner axis
        self._longer: list[tuple[int, int, Reader]] = []  # from where to where they count
        places: list[tuple[int, int, int, int, int]] = []
        first = 0
        for form in forms:
            for r in form.readers:
                if len(r.maps) > 1 or r.maps[0].kind == "diagonal" or r.factor != 1:
                    self._longer.append((first, first + form.dimension, r))
                    continue
                number, index = layout.place[r.maps[0].name]
                inner = 1 if r.maps[0].kind == "rows" else 0
                of = self._readers.setdefault(number, {}).setdefault(inner, [])
                places.append((number, inner, len(of), first, form.dimension))
                of.append((index, r.bias))
            first += form.dimension
        into = [torch.arange(at, at + count) for *_, at, count in sorted(places)]
        whole = torch.cat([torch.zeros(0, dtype=torch.long), *into])
        minus = torch.full((len(whole),), -1.0, dtype=torch.float64)
        self._spread = Spread(torch.arange(len(whole)), whole, minus, first)

    def rows(self, stack: Stack, points: Points, pairs: Sequence[Pair]) -> list[Tensor]:
        """Of the first pair alone: it is slopes that are asked for."""
        (a, b), found = pairs[0], []
        if b == a:  # nothing is conserved
            return [stack.whole.new_zeros(1, 0)]
        for inner, readers in sorted(self._readers.get(stack.number, {}).items()):
            biases = points.of(b, [bias for _, bias in readers])
            pulls = torch.stack([biases[bias].to(stack.whole) for _, bias in readers])
            chosen = [index for index, _ in readers]
            whole = stack.whole[a]
            weight = whole if chosen == list(range(len(whole))) else whole[chosen]
            weight = weight if inner == 1 else weight.mT
            found.append(torch.bmm(pulls[:, None], weight).reshape(1, -1))
        return found or [stack.whole.new_zeros(1, 0)]

    def pair(self, moments: Tensor) -> Tensor:
        return moments.new_zeros(len(moments), 0)

    def slopes(self, moments: Tensor, points: Points, pair: Pair) -> Tensor:
        theta = points.of(pair[0], {m.name for *_, r in self._longer for m in r.maps})
        biases = {f.source for f in self.forms} | {r.bias for *_, r in self._longer}
        given = points.of(pair[1], biases)
        found = torch.cat([f.own(given) for f in self.forms]).double() + self._spread.of(moments)[0]
        for first, last, r in self._longer:
            found[first:last] -= r.pulled(theta, given[r.bias]).double()
        return found

    def sizes(self, moments: Tensor, points: Points) -> Tensor:
        found = []
        for form in self.forms:
            params, totals = points.of(0, form.names), dict[str, Tensor]()
            for r in form.readers:
                totals[r.bias] = totals.get(r.bias, 0) + r.matrix(params).double()
            squares = torch.stack([t.square().sum(0) for t in totals.values()])
            found.append(squares.sum(0).add(1).sqrt())
        return torch.cat(found)

    def scales(self, moments: Tensor, points: Points) -> Tensor:
        return moments.new_zeros(0)

    def decay(self, moments: Tensor, weights: Mapping[str, float]) -> Tensor:
        return moments.new_zeros(0)
