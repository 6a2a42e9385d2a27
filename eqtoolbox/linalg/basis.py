"""An orthonormal set of vectors, stored as flat rows that take memory as they come."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from eqtoolbox.linalg.vectors import Space, Vector, pieces, wide
from eqtoolbox.world.reducing import axis_of, reduced, totalled

Flat = list[Tensor]  # a vector laid out flat, one tensor per dtype, device and axis of its pieces
SHORT = 1 << 15  # entries of a float32 sum that is right to 1e-7
BLOCK = 1 << 24  # entries that rows are allocated for at once, not touched until they come


class Basis:
    """Up to `capacity` orthonormal rows q_1 … q_m with Qw and Qᵀc in float64 coefficients.

    One flat row per vector keeps the cost of m inner products at one pass over memory, however
    many tensors a model has. Matrix products are out of reach of autocast and TF32, which would
    silently round a float32 one to three digits. Memory is taken block by block as rows come, and
    given back as they go: of a model of nine million parameters and more row by row.

    Example:
        >>> x = {"x": torch.tensor([3.0, 4.0])}
        >>> basis = Basis.spanning([x, x])
        >>> len(basis), round(basis.coefficients(basis.pack(x)).item(), 5)
        (1, 5.0)
    """

    def __init__(self, space: Space, capacity: int) -> None:
        self.space = space
        self.capacity = capacity
        self._size = 0
        self._groups: dict[tuple[torch.dtype, torch.device, str], list[str]] = {}
        for name, x in space.like.items():
            self._groups.setdefault((x.dtype, x.device, axis_of(name, x)), []).append(name)
        self._axes = [axis for _, _, axis in self._groups]
        self._sizes = [[space.shapes[n].numel() for n in g] for g in self._groups.values()]
        self._rows = [
            _Rows(sum(sizes), capacity, dtype, device)
            for (dtype, device, _), sizes in zip(self._groups, self._sizes, strict=True)
        ]

    @classmethod
    def spanning(cls, vectors: Sequence[Vector]) -> "Basis":
        """An orthonormal basis of span(vectors); dependent vectors are left out.

        Raises:
            ValueError: no vectors, or all of them zero.
        """
        if not vectors:
            raise ValueError("a basis needs at least one vector, got none")
        space = Space.of(vectors[0])
        basis = cls(space, min(len(vectors), space.size))
        for v in vectors:
            basis.include(space.admit(v))
        if not len(basis):
            raise ValueError("a basis needs a vector that is not zero")
        return basis

    def __len__(self) -> int:
        return self._size

    def pack(self, v: Vector) -> Flat:
        """A flat copy of `v`."""
        return [torch.cat([v[n].reshape(-1) for n in g]) for g in self._groups.values()]

    def unpack(self, flat: Flat) -> dict[str, Tensor]:
        """Views of `flat` under their names, in the order of the space."""
        shapes, views = self.space.shapes, {}
        for x, names, sizes in zip(flat, self._groups.values(), self._sizes, strict=True):
            parts = x.split_with_sizes(sizes)
            views.update({n: p.view(shapes[n]) for n, p in zip(names, parts, strict=True)})
        return views if len(flat) == 1 else {name: views[name] for name in self.space.like}

    def vector(self, i: int) -> dict[str, Tensor]:
        """Views of row i under their names."""
        return self.unpack([rows.row(i) for rows in self._rows])

    def append(self, q: Flat, length: float = 1.0) -> None:
        """Add `q` / `length`, of norm 1 and orthogonal to the others, as the next row."""
        for rows, x in zip(self._rows, q, strict=True):
            rows.resize(self._size + 1)
            torch.div(x, length, out=rows.row(self._size))
        self._size += 1

    def move(self, i: int, to: int) -> None:
        """Make row i row `to` <= i; those between move down."""
        for rows in self._rows if to < i else ():
            moved = rows.row(i).clone()
            for j in range(i, to, -1):
                rows.row(j).copy_(rows.row(j - 1))
            rows.row(to).copy_(moved)

    def reflect(self, mirror: Tensor) -> None:
        """r_j ← r_j − 2 u_j Σ u_i r_i for the last rows, `mirror` u (b,) of norm 1."""
        first = self._size - len(mirror)
        total = [torch.zeros_like(rows.row(first)) for rows in self._rows]
        self.subtract(total, torch.cat([mirror.new_zeros(first), mirror]))
        for rows, x in zip(self._rows, total, strict=True):
            for j, u in enumerate(mirror.tolist(), first):
                rows.row(j).add_(x, alpha=2 * u)

    def include(self, v: Vector) -> None:
        """Span `v` as well: what is new in it becomes a row, if it is more than rounding."""
        w = self.pack(v)
        before = self.norm(w)
        self.orthogonalise(w)
        after = self.norm(w)
        if len(self) < self.capacity and after > 100 * self.space.eps * before:
            self.append(w, after)

    def coefficients(self, w: Flat, first: int = 0, last: int | None = None) -> Tensor:
        """⟨q_i, w⟩ for the rows first … last - 1, by default all, float64 on the CPU."""
        last = self._size if last is None else last
        if first == last:
            return torch.zeros(0, dtype=torch.float64)
        found: dict[str, list[Tensor]] = {}
        for axis, rows, x in zip(self._axes, self._rows, w, strict=True):
            parts = [_products(block, x).cpu() for block in rows.blocks(first, last)]
            found.setdefault(axis, []).append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return _sum([totalled(axis, _sum(parts)) for axis, parts in found.items()])

    def norm(self, w: Flat) -> float:
        """Euclidean norm of a flat vector, in float64."""
        squares: dict[str, float] = {}
        for axis, x in zip(self._axes, w, strict=True):
            wider = None if x.device.type == "mps" else torch.float64
            length = torch.linalg.vector_norm(x, dtype=wider).item()
            squares[axis] = squares.get(axis, 0.0) + length**2
        return math.sqrt(sum(reduced(axis, square) for axis, square in squares.items()))

    def subtract(self, w: Flat, coefficients: Tensor) -> None:
        """w ← w − Σ c_i q_i, in place."""
        last = len(coefficients)
        first = next((i for i, c in enumerate(coefficients.tolist()) if c), last)
        for rows, x in zip(self._rows, w, strict=True):
            start = first
            for block in rows.blocks(first, last):
                _subtract(x, block, coefficients[start : start + len(block)])
                start += len(block)

    def orthogonalise(self, w: Flat) -> Tensor:
        """Subtract the projection on all rows from `w`, twice; returns the coefficients (m,)."""
        first = self.coefficients(w)
        self.subtract(w, first)
        second = self.coefficients(w)
        self.subtract(w, second)
        return first + second

    def project(self, v: Vector) -> dict[str, Tensor]:
        """Πv, the orthogonal projection of `v` on the span."""
        w = self.pack(v)
        return self.combine(self.coefficients(w)[:, None])[0]

    def combine(self, coefficients: Tensor) -> list[dict[str, Tensor]]:
        """The vectors Σ_i c_ij q_i of the first m rows, one per column of `coefficients` (m, p)."""
        mixed = [rows.empty(coefficients.shape[1]) for rows in self._rows]
        self._mix(coefficients, mixed)
        return [self.unpack([x[j] for x in mixed]) for j in range(coefficients.shape[1])]

    def rotate(self, coefficients: Tensor) -> None:
        """Replace the first m rows by p <= m orthonormal combinations; `coefficients` is (m, p)."""
        m, p = coefficients.shape
        self._mix(coefficients, [rows.rows() for rows in self._rows])
        for rows in self._rows:
            for j in range(m, self._size):
                rows.row(j - m + p).copy_(rows.row(j))
            rows.resize(self._size - m + p)
        self._size += p - m

    def _mix(self, coefficients: Tensor, targets: Sequence[Sequence[Tensor] | Tensor]) -> None:
        # piece by piece, so that a target may be the rows themselves
        for rows, target in zip(self._rows, targets, strict=True):
            mix = wide(coefficients.to(rows.device)).T
            old = [_cut(block) for block in rows.blocks(0, len(coefficients))]
            new = [_cut(row) for row in target]
            for here in range(len(old[0])):
                whole = [wide(block[here]) for block in old]
                mixed = mix @ (whole[0] if len(whole) == 1 else torch.cat(whole))
                for row, values in zip(new, mixed, strict=False):
                    row[here].copy_(values)


class _Rows:
    """Rows of one length, dtype and device, in blocks that are allocated when they are needed."""

    def __init__(self, length: int, most: int, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self._length, self._dtype = length, dtype
        self._height = max(1, min(most, BLOCK // max(length, 1)))
        self._blocks: list[Tensor] = []

    def empty(self, count: int) -> Tensor:
        """Memory for so many rows, (count, length)."""
        return torch.empty(count, self._length, dtype=self._dtype, device=self.device)

    def resize(self, count: int) -> None:
        """Have memory for `count` rows, and for no block more."""
        needed = -(-count // self._height)
        self._blocks = self._blocks[:needed]
        self._blocks += [self.empty(self._height) for _ in range(needed - len(self._blocks))]

    def row(self, i: int) -> Tensor:
        """Row i, (length,)."""
        return self._blocks[i // self._height][i % self._height]

    def rows(self) -> list[Tensor]:
        """All rows there is memory for."""
        return [row for block in self._blocks for row in block]

    def blocks(self, first: int, last: int) -> list[Tensor]:
        """Rows first … last - 1, as matrices (rows, length)."""
        if len(self._blocks) == 1:
            return [self._blocks[0][first:last]] if first < last else []
        starts = range(0, len(self._blocks) * self._height, self._height)
        cut = [(max(first - s, 0), min(last - s, self._height)) for s in starts]
        return [x[a:b] for x, (a, b) in zip(self._blocks, cut, strict=True) if a < b]


def _products(rows: Tensor, x: Tensor) -> Tensor:
    """rows @ x, (m,) float64.

    On a CPU, float32 sums over 2^15 entries are right to 1e-7 and cost half of widening the rows.
    """
    if rows.dtype == torch.float32 and rows.device.type == "cpu":
        cast = torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False) if cast else nullcontext():
            parts = [torch.mv(a, b) for a, b in zip(_cut(rows), _cut(x), strict=True)]
        return torch.stack(parts).sum(0, dtype=torch.float64) if len(parts) > 1 else wide(parts[0])
    wider = zip(pieces(rows), pieces(x), strict=True)
    return torch.stack([wide(a) @ wide(b) for a, b in wider]).sum(0)


def _cut(x: Tensor) -> Sequence[Tensor]:
    """`x` cut along its last axis: 2^15 entries on a CPU, so that a block of rows is in cache."""
    short = x.shape[-1] <= SHORT
    return (x,) if short else torch.split(x, SHORT, -1) if x.device.type == "cpu" else pieces(x)


def _subtract(x: Tensor, rows: Tensor, coefficients: Tensor) -> None:
    """x ← x − Σ c_i rows_i, in place: one pass where no mode of products may round it."""
    if x.device.type == "cpu" and len(rows) > 1:
        x.addmv_(rows.T, coefficients.to(x.dtype), alpha=-1)
        return
    for row, c in zip(rows.unbind(), coefficients.tolist(), strict=True):
        x.sub_(row, alpha=c)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack([*tensors]).sum(0)
