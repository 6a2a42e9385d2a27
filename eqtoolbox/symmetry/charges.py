"""Charges: the conserved quantities of many symmetries, and what one step does to all of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rate and decay that an optimizer applies to each parameter in one step."""

    lr: Mapping[str, float]  # sign included: negative where the optimizer ascends; 0 if not its
    decay: Mapping[str, float]  # shrinks by lr * decay * theta: of either sign convention

    def uniform(self, names: Iterable[str]) -> float | None:
        """The common lr * decay of these parameters; None if they differ."""
        found = {abs(self.lr[n]) * self.decay[n] for n in names}
        return found.pop() if len(found) == 1 else None


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
        self.kinds = list(_kinds(members, params))
        self.members = [m for kind in self.kinds for m in kind.members]
        self.names = tuple(dict.fromkeys(n for m in self.members for n in m.names))
        self.families = _stretches(self.members, [m.charges for m in self.members])
        self.generators = _stretches(self.members, [m.dimension for m in self.members])
        self._update: dict[str, Tensor] = {}

    @property
    def count(self) -> int:
        """How many charges there are."""
        return sum(m.charges for m in self.members)

    def read(self, params: Parameters) -> list[Tensor]:
        """Moments of every kind at these parameters, in float64."""
        return [kind.of(params, params, exact=True) for kind in self.kinds]

    def values(self, moments: list[Tensor]) -> Tensor:
        """Q of every charge: (charges,), float64."""
        return torch.cat([k.charge(m) for k, m in zip(self.kinds, moments, strict=True)])

    def scales(self, params: Parameters) -> Tensor:
        """Upper bound of |Q| of every charge at this size of parameters: (charges,)."""
        return torch.cat([m.charge_scale(params) for m in self.members])

    def lengths(self, params: Parameters, moments: list[Tensor]) -> Tensor:
        """|K| of every generator: (dimension,), float64."""
        return torch.cat(
            [
                k.lengths(m) if isinstance(k, (Diagonals, Grams, Shifts)) else _lengths(k, params)
                for k, m in zip(self.kinds, moments, strict=True)
            ]
        )

    def update(self, before: Parameters, after: Parameters) -> dict[str, Tensor]:
        """after - before of what moves charges, in memory that the next call writes over.

        In the parameters' own precision, where nearby numbers have an exact difference; float32
        for half precision, whose products are made in it too.
        """
        for name in self.names:
            kept, old = self._update.get(name), before[name]
            if kept is None or kept.shape != old.shape or kept.device != old.device:
                wide = torch.promote_types(old.dtype, torch.float32)
                kept = self._update[name] = torch.empty_like(old, dtype=wide)
            torch.sub(after[name].to(kept.dtype), old.to(kept.dtype), out=kept)
        return self._update

    def step(
        self,
        moments: list[Tensor],
        before: Parameters,
        update: Parameters,
        gradient: Parameters,
        rates: Rates,
    ) -> tuple[Change, list[Tensor]]:
        """What one step does to every charge, and the moments after it.

        Args:
            moments: of `before` with itself.
            before: parameters at the start of the step.
            update: what the step added.
            gradient: at `before`, as the optimizer was given it.
            rates: of the step.
        """
        parts, after = [], []
        for kind, own in zip(self.kinds, moments, strict=True):
            first, law = kind.of(before, update), kind.of(before, gradient)
            second = kind.of(update, update) if kind.quadratic else first
            linear = kind.pair(first)
            finite = 0.5 * kind.pair(second) if kind.quadratic else torch.zeros_like(linear)
            pull = -_rates(kind, rates, linear) * kind.pair(law)
            decay = -_decay(kind, own, before, rates)
            parts.append((linear + finite, pull, decay, finite, kind.slopes(law)))
            after.append(kind.after(own, first, second))
        drift, pull, decay, finite, slopes = (torch.cat(p) for p in zip(*parts, strict=True))
        change = Change(
            drift=drift, symmetry=pull, decay=decay, finite_step=finite, slopes=slopes
        )
        return change, after

    def slopes(self, params: Parameters, cotangent: Parameters) -> Tensor:
        """<K_i, cotangent> of every generator: (dimension,), float64."""
        return torch.cat([k.slopes(k.of(params, cotangent)) for k in self.kinds])

    def unit(self, index: int) -> str:
        """Which unit of which symmetry a charge belongs to, in words."""
        for member in self.members:
            if index < member.charges:
                return f"{member.name}, unit {index}"
            index -= member.charges
        raise IndexError("more charges than the symmetries have")


def _kinds(members: Sequence[ContinuousSymmetry], params: Parameters) -> Iterator[Moments]:
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
            yield Diagonals([m for m in of if isinstance(m, DiagonalSymmetry)])
        elif kind == "shift":
            yield Shifts([m for m in of if isinstance(m, Translation)])
        elif kind == "single":
            yield Singles(of, quadratic=bool(option))
        else:
            yield Grams([m for m in of if isinstance(m, MatrixSymmetry)])


def _kind(member: ContinuousSymmetry) -> tuple[str, int]:
    if isinstance(member, DiagonalSymmetry):
        return "diagonal", 0
    if isinstance(member, Translation):
        return "shift", 0
    if isinstance(member, (GeneralLinear, Rope)):
        return member.family, member.size
    return "single", 0


def _quadratic(members: Sequence[ContinuousSymmetry], params: Parameters) -> bool:
    """Whether charges are quadratic: what is not of first order in a step does not vanish."""
    return any(bool(m.finite_step(params).any()) for m in members)


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


def _decay(kind: Moments, moments: Tensor, before: Parameters, rates: Rates) -> Tensor:
    names = [n for m in kind.members for n in m.names]
    same = rates.uniform(names)
    if same is not None:
        return same * kind.pair(moments)
    return kind.decay(moments, before, {n: abs(rates.lr[n]) * rates.decay[n] for n in names})


def _lengths(kind: Moments, params: Parameters) -> Tensor:
    """|K_i| one generator at a time, for the few symmetries without moments of their own."""
    found = []
    for m in kind.members:
        like = params[m.names[0]]
        for unit in torch.eye(m.dimension, dtype=like.dtype, device=like.device):
            parts = [k.double().square().sum() for k in m.tangent(params, unit).values()]
            found.append(torch.stack(parts).sum().sqrt())
    return torch.stack(found)
