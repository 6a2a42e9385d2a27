"""Claims that a discovered algebra makes: its one-parameter turns, its finite turns, its group."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from eqtoolbox.expect.bounds import OWN, count, instance
from eqtoolbox.expect.checked import checked
from eqtoolbox.symmetry.actions.action import Action, trivial
from eqtoolbox.symmetry.actions.linear import Powers, vectors
from eqtoolbox.symmetry.algebra import Discovery
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.groups.group import Cyclic
from eqtoolbox.symmetry.groups.matrices import MatrixGroup, Rows, counted, rows

_SMALL = 0.1  # of the largest eigenvalue or singular value: what counts as zero in what is learned
_TURNS = 8  # factors of a random element of a group of several parameters
_WHOLE = 12  # highest multiple of the slowest frequency


@checked
@dataclass(frozen=True, eq=False)  # a tensor has no hash
class Spanned(MatrixGroup):
    """The group exp(sum t_i A_i) of a compact algebra of matrices, such as a discovered one.

    Elements are drawn uniformly for one parameter, and as products of 8 random turns for several,
    which is uniform in the limit of many.

    Args:
        basis: (k, d, d), each with imaginary eigenvalues to rounding.
        called: the name, for records.

    Example:
        >>> turn = torch.tensor([[[0.0, -2.0], [0.5, 0.0]]])
        >>> group = Spanned(turn, "found")
        >>> (g,) = group.sample(1, torch.Generator().manual_seed(0))
        >>> round(float(torch.linalg.det(torch.tensor(g))), 6)
        1.0
    """

    basis: Annotated[Tensor, OWN]
    called: str = "found"

    def __post_init__(self) -> None:
        b = self.basis.detach().to(torch.float64)
        if b.dim() != 3 or b.shape[1] != b.shape[2] or not b.numel():
            raise ValueError(f"basis must be (k, d, d), got shape {tuple(self.basis.shape)}")
        values = torch.linalg.eigvals(b)
        if float(values.real.abs().max()) > 1e-6 * float(values.abs().max()):
            raise ValueError(
                "basis must turn and not stretch: eigenvalues have real parts up to "
                f"{float(values.real.abs().max()):.2g}, so no average over the group exists"
            )
        object.__setattr__(self, "basis", b)

    @property
    def name(self) -> str:
        return self.called

    @property
    def size(self) -> int:
        return int(self.basis.shape[1])

    def generators(self) -> list[Tensor]:
        return list(self.basis)

    def sample(self, count: int, generator: torch.Generator) -> list[Rows]:
        one = len(self.basis) == 1
        scale = float(torch.linalg.eigvals(self.basis).abs().max())
        shape = (counted(count), 1 if one else _TURNS, len(self.basis))
        draw = torch.rand if one else torch.randn
        drawn = draw(shape, generator=generator, dtype=torch.float64, device=generator.device)
        around = 2 * math.pi / _slowest(self.basis[0]) if one else math.pi / scale
        turns = torch.linalg.matrix_exp(
            torch.einsum("nfk,kij->nfij", around * drawn.cpu(), self.basis)
        )
        return [
            rows(torch.linalg.multi_dot([*some]) if len(some) > 1 else some[0]) for some in turns
        ]


Found = Annotated[Discovery, instance("a Discovery", "as discover_data returns it")]
Order = Annotated[int, count(2)]


@checked
def found_claim(found: Found, output_action: Action = trivial) -> Equivariance:
    """The claim that a discovered algebra makes, f(exp(A) x) = R f(x), for its compact part.

    What is learned is known up to an error; so directions that are ignored are divided out, an
    algebra that keeps a definite form is made to keep it exactly, and one turn is made to return to
    where it began: its eigenvalues lose their real parts and become whole multiples of one.

    Args:
        found: of `discover_data`.
        output_action: of the outputs, an action of matrices on their last dimension.

    Raises:
        ValueError: nothing was found, or nothing compact (scalings, shears, boosts).

    Example:
        >>> from eqtoolbox.symmetry.algebra import discover_data
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> ellipse = lambda x: (x[:, :1].square() + 4 * x[:, 1:2].square()).sin() * x[:, 2:]
        >>> found_claim(discover_data(ellipse, x)).name
        'found.so2'
    """
    basis = _cleaned(found)
    letters = "".join(c for c in found.name.split(",")[0] if c.isalnum()) or "algebra"
    name = f"found.{letters}"
    return Equivariance(Spanned(basis, name), vectors, output_action, name=name)


@checked
def found_turns(found: Found, order: Order = 8) -> Equivariance:
    """The invariance under a finite cyclic part of a discovered one-parameter symmetry.

    Its elements are exp(2 pi k A / order), A scaled to return after 2 pi: a finite group, over
    which averages are exact and weights can be tied.

    Args:
        found: of `discover_data`.
        order: elements, >= 2.

    Raises:
        ValueError: what was found has several parameters, or none, or does not return.

    Example:
        >>> from eqtoolbox.symmetry.algebra import discover_data
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found_turns(discover_data(lambda x: x.norm(dim=1, keepdim=True), x), 4).name
        'found.cyclic4'
    """
    basis = _cleaned(found)
    if len(basis) > 1:
        raise ValueError(
            f"{found.name} has {len(basis)} parameters: it has no cyclic part to choose; take "
            "found_claim, and sample it"
        )
    a = basis[0] * (2 * math.pi / order / _slowest(basis[0]))
    power = Powers(torch.linalg.matrix_exp(a))
    return Equivariance(Cyclic(order), power, trivial, name=f"found.cyclic{order}")


def _cleaned(found: Discovery) -> Tensor:
    """A basis (k, d, d) of the compact algebra near what was found.

    Raises:
        ValueError: there is none.
    """
    if not found.dimension:
        raise ValueError(f"no symmetry was found: {found.note}")
    basis = _divided(found.basis)
    if not len(basis):
        raise ValueError(f"{found.name}: directions are ignored, nothing turns; leave them out")
    if len(basis) == 1:
        return _periodic(basis[0], found.name)[None]
    form = _definite(basis)
    if form is None:
        raise ValueError(
            f"{found.name} keeps no definite form: it stretches, and no average over it exists"
        )
    root = torch.linalg.cholesky(form).mT  # x -> root x makes the form that of Euclid
    turned = root @ basis @ torch.linalg.inv(root)
    turned = (turned - turned.mT) / 2
    cleaned: Tensor = torch.linalg.inv(root) @ turned @ root
    return cleaned


def _divided(basis: Tensor) -> Tensor:
    """The algebra on the directions that are not ignored: those are no image of all maps."""
    d = basis.shape[-1]
    into = torch.einsum("kij,klj->il", basis, basis) / d  # k = 1 along ignored directions
    values, vectors_ = torch.linalg.eigh(into)
    kept = vectors_[:, values < 1 - _SMALL]
    part = kept @ kept.T @ basis @ kept @ kept.T
    _, sizes, right = torch.linalg.svd(part.flatten(1), full_matrices=False)
    found: Tensor = right[sizes > _SMALL * max(1.0, float(sizes.max()))]
    return found.reshape(-1, d, d)


def _definite(basis: Tensor) -> Tensor | None:
    """A positive form M with A^T M + M A = 0, the mean of g^T g over the group; None: none near."""
    d = basis.shape[-1]
    one = torch.eye(d, dtype=torch.float64)
    rows_ = torch.cat(
        [torch.kron(a.T.contiguous(), one) + torch.kron(one, a.T.contiguous()) for a in basis]
    )
    _, sizes, right = torch.linalg.svd(rows_)
    kernel = right[sizes < _SMALL].reshape(-1, d, d)
    if not len(kernel):
        return None
    mean: Tensor = torch.einsum("kij,k->ij", kernel, kernel.diagonal(dim1=1, dim2=2).sum(1))
    mean = (mean + mean.T) / 2
    values = torch.linalg.eigvalsh(mean)
    return mean if float(values[0]) > 1e-3 * float(values[-1]) else None


def _periodic(a: Tensor, name: str) -> Tensor:
    """The nearest map whose exponential returns after 2 pi: eigenvalues 0, i, 2i, ..."""
    values, vectors_ = torch.linalg.eig(a)
    size = float(values.abs().max())
    if size < _SMALL * float(a.norm()) or float(values.real.abs().max()) > _SMALL * size:
        raise ValueError(f"{name} does not return: it stretches or shears, and has no average")
    speeds = values.imag / size
    for whole in range(1, _WHOLE + 1):
        multiples = (speeds * whole).round()
        if float((speeds - multiples / whole).abs().max()) < _SMALL / 2 / whole:
            diagonal = torch.diag((1j * multiples).to(vectors_.dtype))
            periodic: Tensor = (vectors_ @ diagonal @ torch.linalg.inv(vectors_)).real
            return periodic
    raise ValueError(f"{name} turns at speeds without a common period: no finite part returns")


def _slowest(a: Tensor) -> float:
    """The speed of which all others are multiples, of a periodic map."""
    speeds = torch.linalg.eigvals(a).imag.abs()
    size = float(speeds.max())
    for whole in range(1, _WHOLE + 1):
        if float((speeds * whole / size - (speeds * whole / size).round()).abs().max()) < 1e-6:
            return size / whole
    return size
