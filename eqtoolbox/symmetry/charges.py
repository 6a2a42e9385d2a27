"""Charges: the conserved quantities of many symmetries, and what one step does to all of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.symmetry.families.diagonal import DiagonalSymmetry
from eqtoolbox.symmetry.families.general_linear import GeneralLinear, MatrixSymmetry
from eqtoolbox.symmetry.families.rope import Rope
from eqtoolbox.symmetry.families.translation import Translation
from eqtoolbox.symmetry.grams import Grams
from eqtoolbox.symmetry.moments import Diagonals, Moments, Shifts, Singles
from eqtoolbox.symmetry.parameter import ContinuousSymmetry, Parameters
from eqtoolbox.symmetry.stack import Layout, Stack


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rate and decay that an optimizer applies to each parameter in one step."""

    lr: Mapping[str, float]  # sign included: negative where the optimizer ascends; 0 if not its
    decay: Mapping[str, float]  # gamma: theta shrinks by |lr| gamma theta


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """One step's drift of every charge and its four causes: (charges,) each, float64."""

    drift: Tensor  # Q(theta + d) - Q(theta) = the sum of the causes
    symmetry: Tensor  # -eta <K, g>: 0 while the symmetry holds, -eta c for an equivariance
    decay: Tensor  # -eta gamma <K, theta>
    finite_step: Tensor  # Q(d) for quadratic charges, 0 for linear ones
    slopes: Tensor  # <K_i, g> of every generator, (dimension,)

    @property
    def optimizer(self) -> Tensor:
        """<K, d + eta (g + gamma theta)>: what else than gradient flow the step was."""
        return self.drift - self.symmetry - self.decay - self.finite_step

    @property
    def causes(self) -> dict[str, Tensor]:
        """The four causes by name."""
        return {c: getattr(self, c) for c in ("symmetry", "decay", "optimizer", "finite_step")}


class Charges:
    """All charges of many symmetries, evaluated together without a loop over units.

    Vectors over charges and over generators are ordered by family and, within a family, by
    symmetry as given. Each family has its stretch in `families` and `generators`.

    Args:
        members: the symmetries.
        params: parameters of the shapes that they act on.
    """

    def __init__(self, members: Sequence[ContinuousSymmetry], params: Parameters) -> None:
        names = tuple(dict.fromkeys(n for m in members for n in m.names))
        self.names = names
        layout = Layout(names, params)
        self.kinds = list(_kinds(members, params, layout))
        self.members = [m for kind in self.kinds for m in kind.members]
        self.families = _stretches(self.members, [m.charges for m in self.members])
        self.generators = _stretches(self.members, [m.dimension for m in self.members])
        self._stacks = [Stack(layout) for _ in range(3)]

    @property
    def count(self) -> int:
        """How many charges there are."""
        return sum(m.charges for m in self.members)

    def read(self, params: Parameters) -> list[Tensor]:
        """Moments of every kind at these parameters, in float64."""
        (stack,) = self._filled(params)
        return [kind.of(stack, stack, exact=True) for kind in self.kinds]

    def values(self, moments: list[Tensor]) -> Tensor:
        """Q of every charge: (charges,), float64."""
        return torch.cat([k.charge(m) for k, m in zip(self.kinds, moments, strict=True)])

    def scales(self, params: Parameters) -> Tensor:
        """Upper bound of |Q| of every charge at this size of parameters: (charges,)."""
        return torch.cat([m.charge_scale(params) for m in self.members])

    def lengths(self, params: Parameters, moments: list[Tensor]) -> Tensor:
        """|K| of every generator: (dimension,), float64."""
        pairs = zip(self.kinds, moments, strict=True)
        return torch.cat([k.lengths(m, params) for k, m in pairs])

    def slopes(self, params: Parameters, cotangent: Parameters) -> Tensor:
        """<K_i, cotangent> of every generator: (dimension,), float64."""
        here, there = self._filled(params, cotangent)
        return torch.cat([k.slopes(k.of(here, there), here, there) for k in self.kinds])

    def step(
        self,
        values: Tensor,
        before: Parameters,
        after: Parameters,
        gradient: Parameters | None,
        rates: Rates,
    ) -> Change:
        """What one step does to every charge.

        Args:
            values: Q at `before`, (charges,).
            before: parameters at the start of the step.
            after: and at its end.
            gradient: at `before`, as the optimizer was given it; None for a step without.
            rates: of the step.
        """
        here, update, pull = self._filled(before, after, gradient or before)
        update.subtract(here)
        if gradient is None:
            for whole in pull.whole:
                whole.zero_()
        parts = []
        counts = [sum(m.charges for m in kind.members) for kind in self.kinds]
        for kind, own in zip(self.kinds, torch.split(values, counts), strict=True):
            drift = kind.pair(kind.of(here, update))
            finite = torch.zeros_like(drift)
            if kind.quadratic:
                finite = 0.5 * kind.pair(kind.of(update, update))
                drift = drift + finite
            law = kind.of(here, pull)
            symmetry = -_rates(kind, rates, drift) * kind.pair(law)
            slopes = kind.slopes(law, here, pull)
            parts.append((drift, symmetry, -_decay(kind, own, here, rates), finite, slopes))
        drift, symmetry, decay, finite, slopes = (torch.cat(p) for p in zip(*parts, strict=True))
        return Change(
            drift=drift, symmetry=symmetry, decay=decay, finite_step=finite, slopes=slopes
        )

    def _filled(self, *several: Parameters) -> list[Stack]:
        """Stacks of these parameters, in memory that the next call writes over.

        Nearby numbers have an exact difference in their own precision; what is half precision
        becomes float32, where its differences and products are made.
        """
        stacks = self._stacks[: len(several)]
        for stack, tensors in zip(stacks, several, strict=True):
            stack.fill(tensors)
        return stacks

    def unit(self, index: int) -> str:
        """Which unit of which symmetry a charge belongs to, in words."""
        for member in self.members:
            if index < member.charges:
                return f"{member.name}, unit {index}"
            index -= member.charges
        raise IndexError("more charges than the symmetries have")


def _kinds(
    members: Sequence[ContinuousSymmetry], params: Parameters, layout: Layout
) -> Iterator[Moments]:
    """Symmetries that are evaluated together; whole families, so that theirs lie together."""
    families: dict[str, list[ContinuousSymmetry]] = {}
    for m in members:
        families.setdefault(m.family, []).append(m)
    groups: dict[tuple[str, int], list[ContinuousSymmetry]] = {}
    for of in families.values():
        kinds = {_kind(m) for m in of}
        if len(kinds) > 1 or ("single", 0) in kinds:
            groups.setdefault(("single", int(_quadratic(of, params))), []).extend(of)
        else:
            groups.setdefault(kinds.pop(), []).extend(of)
    for (kind, option), of in groups.items():
        if kind == "diagonal":
            yield Diagonals([m for m in of if isinstance(m, DiagonalSymmetry)], layout)
        elif kind == "shift":
            yield Shifts([m for m in of if isinstance(m, Translation)], layout)
        elif kind == "single":
            yield Singles(of, quadratic=bool(option))
        else:
            yield Grams([m for m in of if isinstance(m, MatrixSymmetry)], layout)


def _kind(member: ContinuousSymmetry) -> tuple[str, int]:
    if isinstance(member, DiagonalSymmetry):
        return "diagonal", 0
    if isinstance(member, Translation):
        return "shift", 0
    if isinstance(member, (GeneralLinear, Rope)):
        return member.family, member.size
    return "single", 0


def _quadratic(members: Sequence[ContinuousSymmetry], params: Parameters) -> bool:
    """Whether charges are quadratic: what is not of first order in a step does not vanish.

    Asked along a random step, since what the parameters are now may be zero.
    """
    rng = torch.Generator().manual_seed(0)
    own = {n: params[n] for m in members for n in m.names}
    steps = {n: torch.randn(p.shape, generator=rng).to(p) for n, p in own.items()}
    return any(bool(m.finite_step(steps).any()) for m in members)


def _stretches(members: Sequence[ContinuousSymmetry], counts: list[int]) -> dict[str, slice]:
    found: dict[str, slice] = {}
    start = 0
    for member, count in zip(members, counts, strict=True):
        first = found.get(member.family, slice(start, start)).start
        found[member.family] = slice(first, start + count)
        start += count
    return found


def _rates(kind: Moments, rates: Rates, like: Tensor) -> Tensor | float:
    """Learning rate of every charge: the largest among the parameters of its symmetry.

    Where they differ, the rest of the pull is the optimizer's doing and counted there.
    """
    each = [max((rates.lr[n] for n in m.names), key=abs) for m in kind.members]
    if len(set(each)) == 1:
        return each[0]
    counts = torch.tensor([m.charges for m in kind.members])
    return torch.tensor(each, dtype=like.dtype).repeat_interleave(counts).to(like)


def _decay(kind: Moments, values: Tensor, here: Stack, rates: Rates) -> Tensor:
    """eta gamma <K, theta>: a multiple of Q where all parameters decay alike."""
    names = [n for m in kind.members for n in m.names]
    weights = {n: abs(rates.lr[n]) * rates.decay[n] for n in names}
    if len(set(weights.values())) == 1:
        return weights[names[0]] * (2 if kind.quadratic else 1) * values
    return kind.decay(kind.of(here, here), here, weights)
