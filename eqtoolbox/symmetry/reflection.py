"""A reflection: an orthogonal involution that exchanges and flips single entries of parameters.

T x = s x[perm] with T T = 1 splits the space in two: P = (1 + T) / 2 projects on the points that
T leaves in place, I - P on those that it reflects. Of the latter, (e_p - s e_q) / sqrt(2) for every
exchanged pair (p, q) of entries and e_p for every flipped entry are an orthonormal basis.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.symmetry.parameter import Parameters

Move = Callable[[Parameters], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Entries:
    """What a reflection does to one parameter: flat indices of its antisymmetric basis vectors."""

    first: Tensor  # (m,) p, or the flipped entry
    second: Tensor  # (m,) q, or the flipped entry again
    weight: Tensor  # (m, 2) float64, coefficients of e_p and e_q

    @classmethod
    def of(cls, image: Tensor) -> "Entries":
        """From the image under T of a tensor with entries 1, 2, 3, ..."""
        signed = image.flatten().cpu()
        here = torch.arange(signed.numel())
        there, sign = signed.abs().long() - 1, signed.sign()
        chosen = (here < there) | ((here == there) & (sign < 0))
        first, second, sign = here[chosen], there[chosen], sign[chosen]
        alone = first == second
        root = torch.full_like(sign, math.sqrt(0.5))
        weight = torch.stack([torch.where(alone, 1.0, root), torch.where(alone, 0.0, -sign * root)])
        return cls(first, second, weight.mT)


@dataclass(frozen=True, kw_only=True)
class Reflection:
    """T of one discrete symmetry: what it moves and the coordinates in which it is -1."""

    label: str  # which units it is about, for a reader
    move: Move  # params -> T params, only the moved ones
    entries: dict[str, Entries]

    @classmethod
    def of(cls, move: Move, params: Parameters, names: tuple[str, ...], label: str) -> "Reflection":
        """The reflection that `move` is.

        Args:
            move: a signed permutation of entries that is its own inverse.
            params: any parameters, for their shapes.
            names: the parameters that it moves.
            label: which units it is about.
        """
        counted = {
            n: torch.arange(1.0, params[n].numel() + 1, dtype=torch.float64).reshape(
                params[n].shape
            )
            for n in names
        }
        entries = {n: Entries.of(image) for n, image in move(counted).items()}
        return cls(label=label, move=move, entries=entries)

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
            flat = params[name].reshape(-1)
            weight, p, q = (x.to(flat.device) for x in (e.weight.to(flat), e.first, e.second))
            found[name] = weight[:, 0] * flat[p] + weight[:, 1] * flat[q]
        return found

    def embed(self, coordinates: Parameters, like: Parameters) -> dict[str, Tensor]:
        """The antisymmetric vector with these coordinates, zero elsewhere."""
        whole = {n: p.new_zeros(p.shape) for n, p in like.items()}
        for name, e in self.entries.items():
            flat, x = whole[name].view(-1), coordinates[name]
            weight, p, q = (y.to(flat.device) for y in (e.weight.to(flat), e.first, e.second))
            flat.index_add_(0, p, weight[:, 0] * x).index_add_(0, q, weight[:, 1] * x)
        return whole
