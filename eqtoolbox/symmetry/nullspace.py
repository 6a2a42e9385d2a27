"""The linear maps that the derivatives of a function annihilate, and how clearly they are told."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Of 120 networks and polynomials without a symmetry the largest gap was 3.5; sums of x^4 and of
# |x|^2.5, which are nearly of |x|, reach 4.6 and 6.1, functions that a network has learned 13 and
# more. For directions: 16, where one hardly counts, and 60.
GAP = 6.5  # ratio of neighbouring singular values that separates symmetries from the rest
IGNORED = 20.0  # the same of directions that no output depends on from the rest


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A function's derivatives at some points."""

    gradients: Tensor  # (N, outputs, k, d), float64
    points: Tensor  # (N, k, d), float64
    values: Tensor | None  # (N, outputs), vectors that turn like points; None for invariants
    eps: float  # rounding of the function's precision

    def through(self, into: Tensor, back: Tensor) -> "Samples":
        """The same function in coordinates y (m,) with x = into y and y = back x."""
        values = self.values
        gradients = self.gradients @ into
        if values is not None:
            d = into.shape[0]
            values = (values.reshape(len(values), -1, d) @ back.T).flatten(1)
            outputs = gradients.reshape(len(values), -1, d, *gradients.shape[2:])
            gradients = torch.einsum("io,nmokj->nmikj", back, outputs).flatten(1, 2)
        return replace(self, gradients=gradients, points=self.points @ back.T, values=values)

    def shuffled(self, rng: torch.Generator) -> "Samples":
        """Gradients of one sample with the points and values of another."""
        order = torch.randperm(len(self.points), generator=rng, device=rng.device)
        order = order.to(self.points.device)
        values = None if self.values is None else self.values[order]
        return replace(self, points=self.points[order], values=values)

    def rows(self) -> "Conditions":
        """Lie derivatives J A x, or J A x - A f, along every A_ij, over |J| |x| (+ |f|)."""
        rows = torch.einsum("noki,nkj->noij", self.gradients, self.points)
        size = self.gradients.flatten(2).norm(dim=2) * self.points.flatten(1).norm(dim=1)[:, None]
        if self.values is not None:
            d = self.points.shape[-1]
            vectors = self.values.reshape(len(rows), -1, d)  # output o = (vector m, component i)
            own = torch.einsum("nmj,li->nmlij", vectors, torch.eye(d).to(vectors))
            rows = rows - own.reshape(len(rows), -1, d, d)
            size = size + vectors.norm(dim=2).repeat_interleave(d, dim=1)
        return Conditions((rows / _over(size)[..., None, None]).flatten(2).flatten(0, 1), self.eps)

    def slopes(self) -> "Conditions":
        """Gradients over |J|: what they never point along, no output depends on."""
        size = self.gradients.flatten(2).norm(dim=2)
        return Conditions((self.gradients / _over(size)[..., None, None]).flatten(0, 2), self.eps)


def _over(size: Tensor) -> Tensor:
    """What rows of that size (N, outputs) are divided by, so that their sizes are from 0 to 2.

    Half of the rows keep 1/2 or more, so that no few samples decide; those where an output hardly
    changes count less, as they would be noise of the size of the rest. Every output counts alike.
    """
    known = size.masked_fill(size == 0, math.nan).nanmedian(dim=0).values.nan_to_num(nan=1.0)
    return torch.maximum(known.expand_as(size), size / 2)


class Conditions:
    """Many linear conditions, and what obeys them: singular values ascend, root mean square."""

    def __init__(self, rows: Tensor, eps: float) -> None:
        self.conditions = rows
        few = len(rows) < rows.shape[1]
        _, found, right = torch.linalg.svd(rows, full_matrices=few)
        values = torch.zeros(rows.shape[1]).to(rows)
        values[: len(found)] = found / math.sqrt(max(len(rows), 1))
        self.values, self.directions = values.flip(0), right.T.flip(1)
        self.floor = 10 * eps / math.sqrt(rows.shape[1])  # of values that are rounding

    def gap(self) -> tuple[int, float]:
        """How many values lie below the largest ratio of neighbours, and that ratio."""
        raised = self.values.clamp(min=self.floor)
        if float(raised[-1]) == self.floor:
            return len(raised), math.inf
        ratios = raised[1:] / raised[:-1]
        if not len(ratios):
            return 0, 1.0
        best = int(ratios.argmax())
        return best + 1, float(ratios[best])

    def exact(self, count: int) -> bool:
        """Whether the first values are nothing but rounding."""
        return bool((self.values[:count] <= 10 * self.floor).all())


@dataclass(frozen=True, kw_only=True)
class Nullspace:
    """What was found."""

    basis: Tensor  # (n, d, d) orthonormal
    related: Tensor  # (r, m, m) orthonormal: the part that acts on the m directions not ignored
    ignored: int  # directions that no output depends on
    singular_values: Tensor  # (d^2,) of the whole space
    gap: float  # the less clear one of the decisions made, or of the one not made
    null_gap: float  # of shuffled data, in the directions not ignored
    exact: bool  # whether what annihilates the rest does so to rounding
    why: str  # what keeps the answer from being one; "" if it is


def nullspace(samples: Samples, rng: torch.Generator) -> Nullspace:
    """The maps A that all rows annihilate.

    Points get unit second moment. Of an invariant function the ignored directions are divided out:
    those ignored to rounding, and the nearly ignored ones too where nothing else is exact.
    """
    root, inverse = _roots(samples.points.flatten(0, 1))
    samples = samples.through(root, inverse)
    exactly, nearly = _ignored(samples)
    found = _divided(samples, *exactly, rng)
    if nearly[0] > exactly[0] and not found.exact:
        found = _divided(samples, *nearly, rng)
    return replace(found, basis=_span(root @ found.basis @ inverse))


def _ignored(samples: Samples) -> tuple[tuple[int, float], tuple[int, float]]:
    """How many directions no output depends on, and how clearly: to rounding, and nearly."""
    slopes = samples.slopes()
    count, clear = slopes.gap()
    if samples.values is not None or clear < IGNORED or count == len(slopes.values):
        return (0, math.inf), (0, math.inf)
    return ((count, clear) if slopes.exact(count) else (0, math.inf)), (count, clear)


def _divided(samples: Samples, ignored: int, clear: float, rng: torch.Generator) -> Nullspace:
    """The maps into ignored directions, and those that annihilate what is left.

    There, slopes of an invariant function get unit second moment as well: the rows then say how
    slopes and points belong together, and shuffled ones have no gap but that of too few samples.
    """
    axes = samples.slopes().directions
    unused, kept = axes[:, :ignored], axes[:, ignored:]
    m = kept.shape[1]
    quotient, upright = samples.through(kept, kept.T), kept.T @ kept
    if samples.values is None:
        upright = _roots(math.sqrt(m) * quotient.slopes().conditions)[1]
        quotient = replace(quotient, gradients=quotient.gradients @ upright)
    rows, null = quotient.rows(), quotient.shuffled(rng).rows().gap()[1]
    count, gap = rows.gap()
    exact, wide = rows.exact(count), gap >= GAP
    sure = exact or (gap >= 2 * null and len(rows.conditions) >= 2 * m * m)
    related = rows.directions[:, : count if wide and sure else 0].T.reshape(-1, m, m)
    related = _span(upright @ related)
    every = torch.eye(axes.numel()).to(axes).reshape(-1, *axes.shape)
    into = unused @ unused.T @ every if ignored else every[:0]
    doubt = f"a gap of {gap:.2g}, of shuffled data {null:.2g}: give more samples"
    return Nullspace(
        basis=torch.cat([kept @ related @ kept.T, into]),
        related=related,
        ignored=ignored,
        singular_values=samples.rows().values,
        gap=min(gap, clear) if len(related) or not ignored else clear,
        null_gap=null,
        exact=wide and exact,
        why=doubt if wide and not sure else "",
    )


def _roots(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of the second moment of (N, d), and its inverse."""
    values, axes = torch.linalg.eigh(vectors.T @ vectors / len(vectors))
    size = values.clamp(min=0).sqrt()
    return axes * size @ axes.T, axes / size @ axes.T


def _span(matrices: Tensor) -> Tensor:
    """An orthonormal basis of the span."""
    if not len(matrices):
        return matrices
    _, sizes, rows = torch.linalg.svd(matrices.flatten(1), full_matrices=False)
    kept: Tensor = rows[sizes > 1e-9 * sizes[0]]
    return kept.reshape(-1, *matrices.shape[1:])
