"""Actions that exchange entries: sets, tokens, graphs, mirrored robots, time series, volumes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import Annotated, Any

import torch
from torch import Tensor

from eqtoolbox.expect.bounds import OWN
from eqtoolbox.expect.checked import checked
from eqtoolbox.symmetry.groups.finite import Octahedral, Permutation, Symmetric
from eqtoolbox.symmetry.groups.group import Cyclic


@checked
@dataclass(frozen=True)
class Permute:
    """Moves entry i to g[i] along each of `dims`: the action of Symmetric(n) on sets and graphs.

    `Permute(-2)` for nodes (..., n, features) and tokens, `Permute(-1)` for masks (..., n),
    `Permute(-2, -1)` for dense adjacency matrices.

    Raises:
        ValueError: a dimension has another length than the permutation.

    Example:
        >>> Permute(-1)((1, 2, 0), torch.tensor([10, 20, 30]))
        tensor([30, 10, 20])
    """

    dims: tuple[int, ...]

    def __init__(self, *dims: int) -> None:
        object.__setattr__(self, "dims", dims or (-2,))

    def __call__(self, g: Permutation, x: Tensor) -> Tensor:
        back = torch.tensor(Symmetric(len(g)).inverse(g), device=x.device)
        for dim in self.dims:
            if x.shape[dim] != len(g):
                raise ValueError(
                    f"expected length {len(g)} of dimension {dim}, got shape {tuple(x.shape)}; "
                    f"take Symmetric({x.shape[dim]}) or another dimension"
                )
            x = x.index_select(dim, back)
        return x


@checked
@dataclass(frozen=True)
class Relabel:
    """Node numbers i become g[i]: the action of Symmetric(n) on edge lists and index adjacency.

    Negative entries are padding and stay; edges keep their order, so edge features have `trivial`.

    Example:
        >>> Relabel()((1, 2, 0), torch.tensor([[0, 1, -1], [1, 2, -1]]))
        tensor([[ 1,  2, -1],
                [ 2,  0, -1]])
    """

    def __call__(self, g: Permutation, x: Tensor) -> Tensor:
        if x.is_floating_point():
            raise TypeError(f"expected node numbers, got {x.dtype}")
        if x.numel() and int(x.max()) >= len(g):
            raise ValueError(f"node number {int(x.max())} does not fit a graph of {len(g)} nodes")
        names = torch.tensor(g, device=x.device, dtype=x.dtype)
        return torch.where(x < 0, x, names[x.clamp(min=0).long()])


@checked
@dataclass(frozen=True)
class Reverse:
    """Entries in reverse order along `dim` when g is True: time reversal of a series, by Flip.

    Args:
        dim: the dimension that turns around.
        sign: factor of what changes sign with time, such as velocities: -1.

    Example:
        >>> Reverse()(True, torch.tensor([1, 2, 3]))
        tensor([3, 2, 1])
    """

    dim: int = -1
    sign: int = 1

    def __call__(self, g: bool, x: Tensor) -> Tensor:
        return self.sign * torch.flip(x, (self.dim,)) if g else x


@checked
@dataclass(frozen=True)
class Roll:
    """Entries moved g places along `dim`, wrapping around: the action of Cyclic(length).

    Example:
        >>> Roll()(1, torch.tensor([1, 2, 3]))
        tensor([3, 1, 2])
    """

    dim: int = -1

    def __call__(self, g: int, x: Tensor) -> Tensor:
        return torch.roll(x, g, self.dim)


@checked
@dataclass(frozen=True)
class Signed:
    """A signed permutation of the last dimension and its powers: a robot's left-right mirror.

    Entry i moves to perm[i], times sign[i]. The group is `Cyclic(order)`, see `.group`.

    Args:
        perm: where each entry goes.
        sign: 1 or -1 for each entry.

    Raises:
        ValueError: no permutation, or other signs.

    Example:
        >>> mirror = Signed((1, 0), (-1, -1))
        >>> mirror.group.order, mirror(1, torch.tensor([2.0, 5.0]))
        (2, tensor([-5., -2.]))
    """

    perm: Annotated[Permutation, OWN]
    sign: Annotated[Permutation, OWN]

    def __post_init__(self) -> None:
        for word in ("perm", "sign"):
            given = getattr(self, word)
            try:
                values = tuple(int(v) for v in given)
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(f"{word} must be a list of integers, got {given!r}") from None
            object.__setattr__(self, word, values)
        if sorted(self.perm) != list(range(len(self.perm))) or len(self.sign) != len(self.perm):
            raise ValueError(f"expected a permutation and as many signs, got {self}")
        if any(s not in (1, -1) for s in self.sign):
            raise ValueError(f"signs must be 1 or -1, got {self.sign}")

    @classmethod
    def of(cls, source: Any) -> "Signed":
        """From a pair (perm, sign), an object with these fields, or a signed permutation matrix.

        Example:
            >>> Signed.of([[0, -1], [1, 0]])
            Signed(perm=(1, 0), sign=(1, -1))
        """
        if hasattr(source, "perm") and hasattr(source, "sign"):
            return cls(tuple(source.perm), tuple(source.sign))
        m = None if _pair(source) else torch.as_tensor(source)
        if m is None:
            return cls(tuple(source[0]), tuple(source[1]))
        entries = m.abs()
        each_once = bool((entries.sum(0) == 1).all() and (entries.sum(1) == 1).all())
        if m.dim() != 2 or not each_once or not ((entries == 0) | (entries == 1)).all():
            raise ValueError("the matrix is no signed permutation: use eqtoolbox.symmetry.Linear")
        where = entries.argmax(dim=0)
        signs = m[where, torch.arange(len(m))]
        return cls(tuple(where.tolist()), tuple(int(s) for s in signs.tolist()))

    @property
    def group(self) -> Cyclic:
        """The cyclic group of its powers."""
        lengths = []
        for start in range(len(self.perm)):
            i, length, sign = self.perm[start], 1, self.sign[start]
            while i != start:
                sign *= self.sign[i]
                i, length = self.perm[i], length + 1
            lengths.append(length if sign == 1 else 2 * length)
        return Cyclic(lcm(*lengths))

    def __call__(self, g: int, x: Tensor) -> Tensor:
        if x.shape[-1] != len(self.perm):
            raise ValueError(f"expected {len(self.perm)} entries, got shape {tuple(x.shape)}")
        back = torch.tensor(Symmetric(len(self.perm)).inverse(self.perm), device=x.device)
        sign = torch.tensor(self.sign, device=x.device).to(x.dtype)
        for _ in range(g % self.group.n):
            x = (x * sign).index_select(-1, back)
        return x


def _pair(source: Any) -> bool:
    if isinstance(source, Tensor) or not isinstance(source, Sequence) or len(source) != 2:
        return False
    return sorted(source[0]) == list(range(len(source[0])))


@checked
@dataclass(frozen=True)
class Box:
    """Axes of a volume (..., depth, height, width) exchanged and reversed: acts by Octahedral.

    Args:
        vectors: True when dimension -4 holds the three components (d, h, w), which turn too.

    Raises:
        ValueError: exchanged axes have different lengths.

    Example:
        >>> turn = ((0, 2, 1), (1, -1, 1))
        >>> Box()(turn, torch.arange(8).reshape(2, 2, 2))[0]
        tensor([[2, 0],
                [3, 1]])
    """

    vectors: bool = False

    def __call__(self, g: tuple[Permutation, Permutation], x: Tensor) -> Tensor:
        p, s = g
        lengths = x.shape[-3:]
        if x.dim() < 3 or any(lengths[i] != lengths[p[i]] for i in range(3)):
            raise ValueError(
                f"expected (..., d, h, w) with equal lengths of exchanged axes, got "
                f"{tuple(x.shape)}; use Octahedral with the spacing of the voxels, or crop"
            )
        back = Octahedral().inverse(g)[0]
        flipped = torch.flip(x, tuple(i - 3 for i in range(3) if s[i] == -1))
        lead = x.dim() - 3
        moved = flipped.permute(*range(lead), *(lead + i for i in back)).contiguous()
        if not self.vectors:
            return moved
        if x.dim() < 4 or x.shape[-4] != 3:
            raise ValueError(f"expected three components in dimension -4, got {tuple(x.shape)}")
        signs = torch.tensor(s, device=x.device).to(x.dtype).reshape(3, 1, 1, 1)
        return (moved * signs).index_select(-4, torch.tensor(back, device=x.device))
