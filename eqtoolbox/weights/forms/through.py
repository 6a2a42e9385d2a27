"""Forms through maps: a bias moved into the biases behind linear maps, which K depends on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.weights.forms.form import Balance, Form, Moments
from eqtoolbox.weights.forms.held import StackLayout
from eqtoolbox.weights.forms.mapped import columns, pulled
from eqtoolbox.weights.forms.maps import Reader
from eqtoolbox.weights.forms.stack import Pair, Parameters, Points, Stack


@dataclass(frozen=True, kw_only=True, eq=False)
class Through(Form):
    """b -> b + u, b_o -> b_o - M u for every reader, M the product of the maps before it; no Q."""

    quadratic = False
    source: str
    offset: int  # first entry of the source that moves; `dimension` of them do
    readers: tuple[Reader, ...]
    balance: Balance | None = "bias zero"

    @property
    def names(self) -> tuple[str, ...]:
        maps = [m.name for r in self.readers for m in r.maps]
        return tuple(dict.fromkeys([self.source, *(r.bias for r in self.readers), *maps]))

    @property
    def biases(self) -> tuple[str, ...]:
        """What the readers move, each once."""
        return tuple(dict.fromkeys(r.bias for r in self.readers))

    @property
    def charges(self) -> int:
        return 0

    def own(self, tensors: Parameters) -> Tensor:
        """The entries of the source that move."""
        return tensors[self.source][self.offset : self.offset + self.dimension]

    def tangent(self, tensors: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        total = {
            n: torch.zeros((), dtype=t.dtype, device=t.device).expand(t.shape)
            for n, t in ((n, tensors[n]) for n in self.names)
        }
        whole = torch.zeros_like(tensors[self.source])
        whole[self.offset : self.offset + self.dimension] = coefficients.to(whole)
        total[self.source] = total[self.source] + whole
        for r in self.readers:
            total[r.bias] = total[r.bias] - r.along(tensors, coefficients)[-1].to(total[r.bias])
        return total

    def flow(self, coefficients: Tensor) -> Callable[[Parameters], dict[str, Tensor]]:
        own = (self.source, *(r.bias for r in self.readers))

        def moved(tensors: Parameters) -> dict[str, Tensor]:
            along = self.tangent(tensors, coefficients)
            return {n: tensors[n] + along[n] for n in dict.fromkeys(own)}

        return moved

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
        self.shape, self.owners = (sum(f.dimension for f in forms),), []
        # by stack and inner axis: which tensor, the bias, and where its law is
        self._readers: dict[tuple[int, int], list[tuple[int, str, slice]]] = {}
        self._longer: list[tuple[slice, Reader]] = []
        first = 0
        for form in forms:
            own = slice(first, first + form.dimension)
            for r in form.readers:
                if len(r.maps) > 1 or r.maps[0].kind == "diagonal" or r.factor != 1:
                    self._longer.append((own, r))
                    continue
                number, index = layout.place[r.maps[0].name]
                inner = 1 if r.maps[0].kind == "rows" else 0
                self._readers.setdefault((number, inner), []).append((index, r.bias, own))
            first += form.dimension

    @property
    def read_whole(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for f in self.forms for n in (f.source, *f.biases)))

    def add(self, stack: Stack, points: Points, pairs: Sequence[Pair], moments: Tensor) -> None:
        """Of the first pair alone, if of two points: it is slopes that are asked for."""
        (a, b), piece = pairs[0], stack.piece
        rows = slice(piece.first, piece.first + piece.rows)
        for inner in (0, 1) if a != b else ():
            readers = self._readers.get((stack.number, inner), [])
            if not readers:
                continue
            whole = points.whole(b, [bias for _, bias, _ in readers])
            pulls = torch.stack([whole[bias] for _, bias, _ in readers]).to(stack.each[a])
            weight, chosen = stack.each[a], [index for index, *_ in readers]
            if chosen != list(range(len(weight))):
                weight = weight[chosen]
            if inner == 1:  # (M^T g)_j, over the rows that there are
                found = torch.bmm(pulls[:, None, rows], weight)[:, 0]
            else:
                found = torch.bmm(weight, pulls[:, :, None])[:, :, 0]
            for (*_, own), pull in zip(readers, found, strict=True):
                (moments[0, own] if inner == 1 else moments[0, own][rows]).sub_(pull)

    def rest(self, points: Points, pairs: Sequence[Pair]) -> Tensor | float:
        """What the sources themselves give, and readers behind several maps."""
        a, b = pairs[0]
        if a == b:
            return 0.0
        given = points.whole(b, self.read_whole)
        own = torch.cat([f.own(given) for f in self.forms])
        for where, r in self._longer:
            own[where] -= pulled(points, a, r, given[r.bias])
        return torch.cat([own[None], own.new_zeros(len(pairs) - 1, len(own))])

    def pair(self, moments: Tensor) -> Tensor:
        return moments.new_zeros(len(moments), 0)

    def slopes(self, moments: Tensor) -> Tensor:
        return moments[0]

    def weighted(self, moments: Tensor, weights: Mapping[str, float]) -> Tensor:
        return moments.new_zeros(0)

    def sizes(self, moments: Tensor) -> Tensor:
        """Of the sources alone."""
        return moments.new_ones(sum(self.orders))

    def beside(self, points: Points) -> Tensor:
        """What the readers take back: squared norms of columns."""
        found = []
        for form in self.forms:
            own = {b: [r for r in form.readers if r.bias == b] for b in form.biases}
            of_each = [columns(points, readers, form.dimension) for readers in own.values()]
            found.append(torch.stack(of_each).sum(0))
        return torch.cat(found)

    def scales(self, moments: Tensor) -> Tensor:
        return moments.new_zeros(0)
