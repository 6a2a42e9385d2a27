"""Slopes: order 1 of every unit of every symmetry, from one gradient that may come in pieces.

A generator's residual is |<g, K_i>| over what it would be if nothing cancelled: the mean over units
of the sum over tensors of |g_n| |theta_n|, at the largest rate. Rounding is far below it for every
unit, also for one whose own gradient is nothing but rounding; a unit that breaks the law is at a
few percent of it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.weights.charges.kinds import taken
from eqtoolbox.weights.forms.diagonal import Diagonal
from eqtoolbox.weights.forms.form import Form, Moments
from eqtoolbox.weights.forms.gram import Gram
from eqtoolbox.weights.forms.held import StackLayout
from eqtoolbox.weights.forms.linear import LinearForm
from eqtoolbox.weights.forms.stack import Points
from eqtoolbox.weights.parameter import ContinuousSymmetry, Parameters
from eqtoolbox.world.shards import ALONE, Shards


class Slopes:
    """<g, K_i> of every generator of many symmetries, gathered while the gradient comes.

    Args:
        symmetries: whose generators.
        shards: what of the tensors is held here.
        lit: whether it is looked at which units the gradient says nothing of.
    """

    def __init__(
        self,
        symmetries: Sequence[ContinuousSymmetry],
        shards: Shards = ALONE,
        lit: bool = False,
    ) -> None:
        self.symmetries, self._shards, self._lit = symmetries, shards, lit
        self.slopes: list[Tensor | None] = [None] * len(symmetries)  # (dimension,), float64
        self.sizes = [0.0] * len(symmetries)  # what they count relative to
        self._still: list[Tensor | None] = [None] * len(symmetries)  # which units are inert
        self._moving: dict[str, list[int]] = {}  # which symmetries move a tensor
        for k, symmetry in enumerate(symmetries):
            for name in symmetry.names:
                self._moving.setdefault(name, []).append(k)

    @unobserved()
    def add(self, params: Parameters, gradient: Parameters) -> None:
        """Take one piece of the gradient into account, with the parameters it belongs to."""
        moving = sorted({k for name in gradient for k in self._moving.get(name, ())})
        if not moving:
            return
        own = {name: params[name] for name in params}  # each is made once
        products = _products(own, gradient, self._shards)
        forms = [_part(self.symmetries[k].form, gradient) for k in moving]
        layout = StackLayout(dict.fromkeys(n for f in forms for n in f.names), own, self._shards)
        kinds = [*_alike(forms, layout)]
        points = Points(given=(own, gradient), shards=self._shards)
        found = taken([one.kind for one in kinds], layout, points, [(0, 1)])
        for together, moments in zip(kinds, found.moments, strict=True):
            slopes = together.slopes(moments)
            still = together.still(own, gradient, slopes) if self._lit else None
            for n, part in zip(together.which, together.apart(slopes), strict=True):
                k = moving[n]
                self.slopes[k] = _sum(self.slopes[k], part)
                self.sizes[k] += forms[n].power * sum(products[m] for m in forms[n].names)
            for n, part in zip(together.which, together.apart(still), strict=False):
                before = self._still[moving[n]]
                self._still[moving[n]] = part if before is None else before & part

    def of(self, k: int) -> Tensor:
        """Slopes of one symmetry; zero where the gradient had none of its tensors."""
        found = self.slopes[k]
        if found is None:
            return torch.zeros(self.symmetries[k].dimension, dtype=torch.float64)
        return found

    def scale(self, k: int) -> float:
        """What a unit's slope would be if nothing cancelled."""
        return self.sizes[k] / units(self.symmetries[k].form)

    def residual(self, k: int) -> float:
        """Largest |<g, K_i>| of a symmetry's generators over its scale."""
        return over(self.largest(k), self.scale(k))

    def largest(self, k: int) -> float:
        """Largest |<g, K_i>| of a symmetry's generators."""
        return float(self.of(k).abs().max())

    def overall(self, k: int) -> float:
        """|slopes| over the scale of all units together: how far a group holds on the whole."""
        return over(float(self.of(k).norm()), self.sizes[k])

    @property
    def finite(self) -> bool:
        """Whether the gradient of all that is moved was."""
        return all(map(math.isfinite, self.sizes))

    def inert(self, k: int) -> list[int]:
        """Units of a diagonal group of which no entry has a gradient, or all are zero."""
        still = self._still[k]
        return [] if still is None else still.nonzero().reshape(-1).tolist()

    def but_for(self, there: "Slopes") -> None:
        """Units of which something that fulfils their law was seen at another point are not inert.

        Args:
            there: slopes of some of these symmetries.
        """
        for n, symmetry in enumerate(there.symmetries):
            k = next(k for k, own in enumerate(self.symmetries) if own is symmetry)
            still = self._still[k]
            self._still[k] = None if still is None else still & ~there._holding(n)

    def _holding(self, k: int) -> Tensor:
        """Which units something was seen of that fulfils their law: (dimension,)."""
        still, slopes = self._still[k], self.of(k)
        if still is None:
            return torch.zeros(len(slopes), dtype=torch.bool)
        return ~still & (slopes.abs() <= _ROUNDING * self.scale(k))

    def inert_notes(self) -> Iterator[tuple[tuple[str, str], str]]:
        """Which units nothing was seen of: (family, name), and a sentence."""
        for k, symmetry in enumerate(self.symmetries):
            which = self.inert(k)
            if which:
                few = ", ".join(map(str, which[:_NAMED]))
                rest = f" and {len(which) - _NAMED} more" if len(which) > _NAMED else ""
                yield (
                    (symmetry.family, symmetry.name),
                    "inert on this batch, so that their laws hold without evidence: units "
                    f"{few}{rest} of {symmetry.family} {symmetry.name}",
                )


_PIECE = 2**20  # entries that are widened at a time
_ROUNDING = 1e-10  # of slopes in float64, relative
_NAMED = 8  # units that a note lists


def over(slope: float, scale: float) -> float:
    """A slope over what it counts relative to: 0 where that is 0, infinite where one is not finite.

    Example:
        >>> over(1.0, 4.0), over(0.0, 0.0), over(0.0, float("nan"))
        (0.25, 0.0, inf)
    """
    if not (math.isfinite(slope) and math.isfinite(scale)):
        return math.inf
    return slope / scale if scale > 0 else 0.0


def units(form: Form) -> int:
    """Into how many alike parts the tensors of a form are split."""
    return form.blocks * form.size if isinstance(form, Gram) else form.dimension


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product of two tensors, summed in float64."""
    pieces = zip(*(torch.split(x.reshape(-1), _PIECE) for x in (a, b)), strict=True)
    return sum(float(x.double() @ y.double()) for x, y in pieces)


def _part(form: Form, names: Parameters) -> Form:
    """The part of a form that moves these tensors alone; what is moved by others is no part."""
    if names.keys() >= set(form.names):
        return form
    if isinstance(form, LinearForm):
        return replace(form, terms=tuple(t for t in form.terms if t.name in names))
    if isinstance(form, Diagonal):
        return replace(form, legs=tuple(leg for leg in form.legs if leg.name in names))
    assert isinstance(form, Gram), "only what moves each tensor by itself comes apart"
    return replace(form, legs=tuple(leg for leg in form.legs if leg.name in names))


def _products(params: Parameters, gradient: Parameters, shards: Shards) -> dict[str, float]:
    """|g_n| |theta_n| of every tensor of the gradient."""
    own = [[dot(g, g), dot(params[n], params[n])] for n, g in gradient.items()]
    counted = [[float(shards.counts(n))] for n in gradient]
    home = next(iter(gradient.values()))
    squares = torch.tensor(own, dtype=torch.float64) * torch.tensor(counted, dtype=torch.float64)
    every = shards.added(squares, home).tolist()
    return {n: math.sqrt(g * p) for n, (g, p) in zip(gradient, every, strict=True)}


@dataclass(frozen=True, kw_only=True)
class _Together:
    """Forms of one kind, which are reduced at once."""

    which: list[int]
    forms: list[Form]
    kind: Moments
    layout: StackLayout  # of these and of others that are looked at beside

    def apart(self, units: Tensor | None) -> Sequence[Tensor]:
        """What there is of the generators, form by form."""
        return () if units is None else torch.split(units, [f.dimension for f in self.forms])

    def slopes(self, moments: Tensor) -> Tensor:
        """<K_i, g> of every generator, from the moments of theta with g."""
        return self.kind.slopes(moments).to(self.layout.device, self.layout.dtype)

    def still(self, params: Parameters, gradient: Parameters, slopes: Tensor) -> Tensor:
        """Which units of a diagonal group a piece of the gradient does not meet: g theta = 0."""
        still = slopes == 0
        if not isinstance(self.forms[0], Diagonal) or not bool(still.any()):
            return torch.zeros_like(still)
        for tensors in (gradient, params):  # most often all of one of them is zero
            if not bool((still & (self._lengths(tensors) > 0)).any()):
                return still
        met = {n: gradient[n] * params[n] for n in self.layout.place}
        return still & (self._lengths(met) == 0)

    def _lengths(self, tensors: Parameters) -> Tensor:
        """|K_i| of every generator at these tensors."""
        points = Points(given=(tensors,), shards=self.layout.shards)
        (moments,) = taken([self.kind], self.layout, points, [(0, 0)]).moments
        found = self.kind.lengths(moments, self.kind.beside(points))
        return found.to(self.layout.device, self.layout.dtype)


def _alike(forms: Sequence[Form], layout: StackLayout) -> Iterator[_Together]:
    """All forms, those of one kind together."""
    alike: dict[object, list[int]] = {}
    for k, form in enumerate(forms):
        alike.setdefault(form.key, []).append(k)
    for which in alike.values():
        given = [forms[k] for k in which]
        kind = given[0].together(given, layout)
        yield _Together(which=which, forms=given, kind=kind, layout=layout)


def _sum(before: Tensor | None, found: Tensor) -> Tensor:
    return found if before is None else before + found
