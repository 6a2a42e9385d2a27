"""Names of matrix Lie algebras, from what they leave fixed and how many they are.

An algebra that keeps a form lies inside the algebra of all maps that keep it; of the same
dimension, it is that algebra. So nothing is guessed: what fits no such pair gets no name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_DRAWS = 8  # random members of the commutant that may tell invariant subspaces apart
_PLAIN = ("scaling", "one-parameter")  # named last
_RENAMED = {"sp(2)": "sl(2)", "sp(2,C)": "sl(2,C)", "gl(1,C)": "so(2) × scaling",
            "so(1,3)": "so(1,3) (Lorentz)"}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """An invariant subspace: its basis, and the map that reads coordinates off."""

    inside: Tensor  # (d, m)
    back: Tensor  # (m, d), back @ inside = 1


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Names algebras that are known up to a relative error.

    Example:
        >>> units = torch.eye(4, dtype=torch.float64).reshape(4, 2, 2)
        >>> named = Naming().name
        >>> named(units), named(units[1:2] - units[2:3]), named(units[1:2])
        ('gl(2)', 'so(2)', 'one-parameter')
    """

    tolerance: float = 0.1  # what counts as zero beside 1

    def name(self, basis: Tensor) -> str:
        """The algebra spanned by `basis` (n, d, d): so(3), sl(2), so(2) × so(2), ..."""
        count = len(basis)
        if count == 1:
            return self._one_parameter(basis[0])
        if not closure(basis) < self.tolerance:
            return f"{count}-dimensional, not closed"
        moved = [part for part in self._parts(basis) if len(self._acting(basis, [part]))]
        groups = self._linked(basis, moved)
        names = [self._together(basis, group) for group in groups]
        independent = sum(len(self._acting(basis, group)) for group in groups) == count
        names = names if independent else [""]  # one algebra acts in several ways
        derived, centre = self._derived(basis), self._centre(basis)
        splits = 0 < len(derived) == count - len(centre) < count
        if splits and not all(names):
            names = [self.name(derived), self.name(centre)]
        if not all(names) or any("dimensional" in one for one in names):
            return f"{count}-dimensional"
        factors = " × ".join(names).split(" × ")
        return " × ".join(sorted(factors, key=lambda one: (one in _PLAIN, one)))

    def forms(self, basis: Tensor, parity: int) -> Tensor:
        """The M = parity M^T with A^T M + M A = 0 for all A: (found, d, d), orthonormal."""
        unit = torch.eye(basis.shape[-1]).to(basis)
        flip = torch.eye(unit.numel()).to(basis).reshape(-1, *unit.shape)
        values, vectors = torch.linalg.eigh((flip + parity * flip.mT).flatten(1) / 2)
        maps = [_kron(a.T, unit) + _kron(unit, a) for a in basis]
        return self._kept(maps, vectors[:, values > 0.5])

    def commutant(self, basis: Tensor) -> Tensor:
        """The X with X A = A X for all A: (found, d, d), orthonormal."""
        unit = torch.eye(basis.shape[-1]).to(basis)
        maps = [_kron(unit, a) - _kron(a, unit) for a in basis]
        return self._kept(maps, torch.eye(unit.numel()).to(basis))

    def _kept(self, maps: Sequence[Tensor], allowed: Tensor) -> Tensor:
        """What all maps send to zero, within the span of the columns of `allowed` (d^2, a)."""
        d = math.isqrt(len(allowed))
        if not allowed.shape[1]:
            return allowed.T.reshape(0, d, d)
        gram = sum((m.T @ m for m in maps), torch.zeros_like(maps[0]))
        values, vectors = torch.linalg.eigh(allowed.T @ gram @ allowed)
        small = values <= self.tolerance**2 * gram.trace() / d**2
        kept: Tensor = (allowed @ vectors[:, small]).T
        return kept.reshape(-1, d, d)

    def _one_parameter(self, a: Tensor) -> str:
        """By its eigenvalues: rotation, boost, scaling, or anything else."""
        values = torch.linalg.eigvals(a / a.norm())
        size = float(values.abs().max())
        small = self.tolerance * size
        if size < self.tolerance:  # nilpotent: a shear
            return "one-parameter"
        if float(values.real.abs().max()) < small:
            return "so(2)"
        if float((values - values.mean()).abs().max()) < small:
            return "scaling"
        real = values.real.sort().values
        opposite = float((real[0] + real[-1]).abs()) < small > float(real[1:-1].norm())
        boost = opposite and float(values.imag.abs().max()) < small
        return "so(1,1)" if boost else "one-parameter"

    def _parts(self, basis: Tensor) -> list[Part]:
        """Invariant subspaces that together are the whole space.

        The eigenspaces of a matrix that commutes with the algebra are invariant; of several random
        ones, that with the most counts.
        """
        whole = torch.eye(basis.shape[-1]).to(basis)
        best, known = [Part(whole, whole)], self.commutant(basis)
        rng = torch.Generator().manual_seed(0)
        for _ in range(_DRAWS):
            weights = torch.randn(len(known), generator=rng, dtype=torch.float64).to(basis)
            split = _eigenspaces(torch.einsum("k,kij->ij", weights, known))
            if len(split) > len(best) and all(self._invariant(basis, part) for part in split):
                best = split
        return best

    def _invariant(self, basis: Tensor, part: Part) -> bool:
        moved = basis @ part.inside
        outside = moved - part.inside @ (part.back @ moved)
        return float(outside.norm()) < self.tolerance * float(basis.norm())

    def _acting(self, basis: Tensor, parts: Sequence[Part]) -> Tensor:
        """The algebra as it acts on some invariant subspaces: (rank, m, m), orthonormal."""
        inside = torch.cat([part.inside for part in parts], 1)
        return self._span(torch.cat([part.back for part in parts]) @ basis @ inside)

    def _span(self, matrices: Tensor) -> Tensor:
        _, sizes, rows = torch.linalg.svd(matrices.flatten(1), full_matrices=False)
        kept: Tensor = rows[sizes > self.tolerance]
        return kept.reshape(-1, *matrices.shape[1:])

    def _linked(self, basis: Tensor, parts: Sequence[Part]) -> list[list[Part]]:
        """Parts by what acts on them: different groups are moved independently."""
        groups: list[list[Part]] = []
        for part in parts:
            alone, joined, others = len(self._acting(basis, [part])), [part], []
            for group in groups:
                free = len(self._acting(basis, group)) + alone
                linked = len(self._acting(basis, [*group, part])) < free
                joined = group + joined if linked else joined
                others += [] if linked else [group]
            groups = [*others, joined]
        return groups

    def _together(self, basis: Tensor, group: Sequence[Part]) -> str:
        """The name of what acts on linked subspaces: the same algebra on each; "" if not so."""
        acting = self._acting(basis, group)
        if len(acting) == 1:
            return self._one_parameter(acting[0])
        each = [self._acting(basis, [part]) for part in group]
        names = {self._irreducible(one) if len(one) == len(acting) else "" for one in each}
        return names.pop() if len(names) == 1 else ""

    def _irreducible(self, basis: Tensor) -> str:
        """By the forms it keeps and the field (real, complex, quaternions) that commutes with it.

        Only invariant subspaces could make a form degenerate.
        """
        n, m = len(basis), basis.shape[-1]
        h, q = m // 2, m // 4
        field, even, odd = self.commutant(basis), self.forms(basis, 1), self.forms(basis, -1)
        if any(self._degenerate(form) for form in (*even[:1], *odd[:1])):
            return ""
        traces = torch.einsum("xij,nji->xn", field, basis)
        special = float(traces.norm()) < self.tolerance * math.sqrt(n)
        table = {
            (1, 1, 0, m * (m - 1) // 2): f"so({_signature(even)})",
            (1, 0, 1, m * (m + 1) // 2): f"sp({m})",
            (1, 0, 0, m * m - 1): f"sl({m})" if special else "",
            (1, 0, 0, m * m): f"gl({m})",
            (2, 1, 1, h * h): f"u({_signature(even, 2)})",
            (2, 1, 1, h * h - 1): f"su({_signature(even, 2)})" if special else "",
            (2, 2, 0, h * (h - 1)): f"so({h},C)",
            (2, 0, 2, h * (h + 1)): f"sp({h},C)",
            (2, 0, 0, 2 * h * h - 2): f"sl({h},C)" if special else "",
            (2, 0, 0, 2 * h * h): f"gl({h},C)",
            (4, 1, 3, q * (2 * q + 1)): "su(2)" if m == 4 else f"compact sp({_signature(even, 4)})",
        }
        found = table.get((len(field), len(even), len(odd), n), "")
        return _RENAMED.get(found, found)

    def _degenerate(self, form: Tensor) -> bool:
        sizes = torch.linalg.svdvals(form)
        return float(sizes[-1]) < self.tolerance * float(sizes[0])

    def _derived(self, basis: Tensor) -> Tensor:
        """The span of all commutators."""
        return self._span(torch.cat([a @ basis - basis @ a for a in basis]))

    def _centre(self, basis: Tensor) -> Tensor:
        """The members that commute with all members."""
        flat = torch.cat([(a @ basis - basis @ a).flatten(1) for a in basis], 1)
        _, sizes, rows = torch.linalg.svd(flat.T, full_matrices=False)
        return torch.einsum("kn,nij->kij", rows[sizes < self.tolerance], basis)


def closure(basis: Tensor) -> float:
    """Largest part of a commutator [A_i, A_j] outside the span of the basis, over |A_i||A_j|.

    NaN below two dimensions.

    Example:
        >>> closure(torch.eye(4, dtype=torch.float64).reshape(4, 2, 2))
        0.0
    """
    flat = torch.linalg.qr(basis.flatten(1).T)[0]
    size = basis.flatten(1).norm(dim=1)
    worst = math.nan
    for i in range(1, len(basis)):
        c = (basis[i] @ basis[:i] - basis[:i] @ basis[i]).flatten(1)
        outside = float(((c - c @ flat @ flat.T).norm(dim=1) / (size[i] * size[:i])).max())
        worst = outside if math.isnan(worst) else max(worst, outside)
    return worst


def _kron(left: Tensor, right: Tensor) -> Tensor:
    """M -> left M right, on flattened M."""
    return torch.kron(left.contiguous(), right.T.contiguous())


def _eigenspaces(x: Tensor) -> list[Part]:
    """Real invariant subspaces of x, one for every cluster of eigenvalues up to conjugation."""
    values, vectors = torch.linalg.eig(x)
    upper = torch.complex(values.real, values.imag.abs())
    near = (upper[:, None] - upper).abs() < 0.1 * upper.abs().max()
    spaces, left = [], torch.ones_like(near[0])
    while left.any():
        members = near[int(left.nonzero()[0])] & left
        left &= ~members
        chosen = vectors[:, members]
        u, _, _ = torch.linalg.svd(torch.cat([chosen.real, chosen.imag], 1))
        spaces.append(u[:, : int(members.sum())])
    together = torch.cat(spaces, 1)
    if float(torch.linalg.cond(together)) > 1e3:  # x has no basis of eigenvectors
        return []
    inverses = torch.linalg.inv(together).split([s.shape[1] for s in spaces])
    return [Part(space, back) for space, back in zip(spaces, inverses, strict=True)]


def _signature(form: Tensor, fold: int = 1) -> str:
    """ "3" for a definite form, "1,3" for one of that signature; each counted `fold` times."""
    if not len(form):
        return ""
    values = torch.linalg.eigvalsh(form[0])
    low, high = sorted((int((values > 0).sum()) // fold, int((values < 0).sum()) // fold))
    return f"{low},{high}" if low else str(high)
