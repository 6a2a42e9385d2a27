"""A reflection: an orthogonal involution that exchanges and flips single entries of parameters.

T x = s x[perm] with T T = 1 splits the space in two: P = (1 + T) / 2 projects on the points that
T leaves in place, I - P on those that it reflects. Of the latter, (e_p - s e_q) / sqrt(2) for every
exchanged pair (p, q) of entries and e_p for every flipped entry are an orthonormal basis.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.weights.families.discrete import AxisMove
from eqtoolbox.weights.parameter import Parameters

Move = Callable[[Parameters], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class MovedEntries:
    """Antisymmetric basis vectors with p in one parameter: flat indices, and where q lies."""

    partner: str  # the parameter that q is in: mostly the same, another one for experts
    first: Tensor  # (m,) p, or the flipped entry
    second: Tensor  # (m,) q, or the flipped entry again
    weight: Tensor  # (m, 2) float64, coefficients of e_p and e_q

    @classmethod
    def of(cls, image: Tensor, start: int, starts: dict[str, int]) -> "MovedEntries | None":
        """Of the parameter whose entries count from `start`; None where T moves none of them.

        Args:
            image: under T, of parameters whose entries are counted through, from 1.
            start: the first one's number.
            starts: the same for every parameter, ascending.
        """
        signed = image.flatten().cpu()
        here = torch.arange(start, start + signed.numel())
        found = _reflected(here, signed.abs().long(), signed.sign())
        if found is None:
            return None
        first, second, weight = found
        partner = [name for name, begin in starts.items() if begin <= int(second[0])][-1]
        return cls(partner, first - start, second - starts[partner], weight)

    @classmethod
    def along(cls, moves: Sequence[AxisMove], shape: torch.Size) -> "MovedEntries | None":
        """Of one parameter that is moved along its axes, from those of its entries that move.

        Axes that count as one are in all moves the same.
        """
        first, end = moves[0].axis, moves[0].axis + moves[0].across
        if moves[0].across > 1:
            shape = torch.Size((*shape[:first], math.prod(shape[first:end]), *shape[end:]))
        sources = [torch.arange(n) for n in shape]
        signs = [torch.ones(n, dtype=torch.float64) for n in shape]
        for m in moves:
            sources[m.axis] = sources[m.axis][m.source]
            signs[m.axis] = signs[m.axis][m.source] * m.sign
        moving = [
            (source != torch.arange(len(source))) | (sign < 0)
            for source, sign in zip(sources, signs, strict=True)
        ]
        parts = []
        for axis, some in enumerate(moving):  # entries that no earlier axis moves
            grid = [
                (some if a == axis else ~m if a < axis else torch.ones_like(m)).nonzero().flatten()
                for a, m in enumerate(moving)
            ]
            here = _flat(grid, shape)
            there = _flat([s[g] for s, g in zip(sources, grid, strict=True)], shape)
            sign = _product([s[g] for s, g in zip(signs, grid, strict=True)])
            parts.append((here, there, sign))
        here, there, sign = (torch.cat(part) for part in zip(*parts, strict=True))
        order = here.argsort()
        found = _reflected(here[order], there[order], sign[order])
        return None if found is None else cls(moves[0].name, *found)


def _reflected(here: Tensor, there: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """p, q and their coefficients in every antisymmetric basis vector; None: there is none."""
    chosen = (here < there) | ((here == there) & (sign < 0))
    if not bool(chosen.any()):
        return None
    first, second, sign = here[chosen], there[chosen], sign[chosen]
    alone = first == second
    root = torch.full_like(sign, math.sqrt(0.5))
    weight = torch.stack([torch.where(alone, 1.0, root), torch.where(alone, 0.0, -sign * root)])
    return first, second, weight.mT


def _flat(indices: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Flat indices of all combinations of indices along each axis."""
    total = torch.zeros((), dtype=torch.long)
    for index, length in zip(indices, shape, strict=True):
        total = total[..., None] * length + index
    return total.flatten()


def _product(factors: Sequence[Tensor]) -> Tensor:
    """Products of all combinations of factors along each axis."""
    total = torch.ones((), dtype=torch.float64)
    for factor in factors:
        total = total[..., None] * factor
    return total.flatten()


@dataclass(frozen=True, kw_only=True)
class Reflection:
    """T of one discrete symmetry: what it moves and the coordinates in which it is -1."""

    label: str  # which units it is about, for a reader
    move: Move  # params -> T params, only the moved ones
    entries: dict[str, MovedEntries]  # by the parameter that p is in; all its partners in one other

    @classmethod
    def of(cls, move: Move, params: Parameters, names: tuple[str, ...], label: str) -> "Reflection":
        """The reflection that `move` is.

        Args:
            move: a signed permutation of entries that is its own inverse.
            params: any parameters, for their shapes.
            names: the parameters that it moves.
            label: which units it is about.
        """
        counted, starts, start = {}, {}, 1
        for n in names:
            ends = start + params[n].numel()
            whole = torch.arange(start, ends, dtype=torch.float64)
            counted[n], starts[n], start = whole.reshape(params[n].shape), start, ends
        images = move(counted)
        found = {n: MovedEntries.of(images[n], starts[n], starts) for n in names if n in images}
        return cls(label=label, move=move, entries={n: e for n, e in found.items() if e})

    @classmethod
    def along(
        cls, move: Move, moves: Iterable[AxisMove], params: Parameters, label: str
    ) -> "Reflection":
        """The reflection that moves axes of each parameter alone; reads no more than it moves.

        Args:
            move: as in `of`.
            moves: what it does to each axis.
            params: any parameters, for their shapes.
            label: which units it is about.
        """
        by_name: dict[str, list[AxisMove]] = {}
        for m in moves:
            by_name.setdefault(m.name, []).append(m)
        found = {n: MovedEntries.along(some, params[n].shape) for n, some in by_name.items()}
        return cls(label=label, move=move, entries={n: e for n, e in found.items() if e})

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters that it moves."""
        partners = (e.partner for e in self.entries.values())
        return tuple(dict.fromkeys((*self.entries, *partners)))

    def __call__(self, params: Parameters) -> dict[str, Tensor]:
        """T params."""
        return {**params, **self.move(params)}

    def symmetric(self, params: Parameters) -> dict[str, Tensor]:
        """P params, the nearest fixed point."""
        return {**params, **{n: (params[n] + t) / 2 for n, t in self.move(params).items()}}

    def coordinates(self, params: Parameters) -> dict[str, Tensor]:
        """Coordinates of (I - P) params in the antisymmetric basis, (m,) by name.

        Their norm is the order parameter |params - P params|.
        """
        found = {}
        for name, e in self.entries.items():
            flat, other = params[name].reshape(-1), params[e.partner].reshape(-1)
            weight, p, q = (x.to(flat.device) for x in (e.weight.to(flat), e.first, e.second))
            found[name] = weight[:, 0] * flat[p] + weight[:, 1] * other[q.to(other.device)].to(flat)
        return found

    def embed(self, coordinates: Parameters, like: Parameters) -> dict[str, Tensor]:
        """The antisymmetric vector with these coordinates, zero elsewhere."""
        whole = {n: p.new_zeros(p.shape) for n, p in like.items()}
        for name, e in self.entries.items():
            flat, other, x = whole[name].view(-1), whole[e.partner].view(-1), coordinates[name]
            weight, p, q = (y.to(flat.device) for y in (e.weight.to(flat), e.first, e.second))
            flat.index_add_(0, p, weight[:, 0] * x)
            other.index_add_(0, q.to(other.device), (weight[:, 1] * x).to(other))
        return whole
