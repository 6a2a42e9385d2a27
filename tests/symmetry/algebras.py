"""Matrix Lie algebras and functions with a known one, in closed form."""

import torch
from torch import Tensor


def unit(d: int, i: int, j: int) -> Tensor:
    e = torch.zeros(d, d, dtype=torch.complex128)
    e[i, j] = 1
    return e


def gl(d: int) -> list[Tensor]:
    return [unit(d, i, j) for i in range(d) for j in range(d)]


def traceless(matrices: list[Tensor]) -> list[Tensor]:
    return [a - a.trace() / len(a) * torch.eye(len(a)).to(a) for a in matrices]


def so(*signs: int) -> list[Tensor]:
    """All A with A^T D + D A = 0, D the diagonal of signs."""
    d = len(signs)
    return [signs[j] * unit(d, i, j) - signs[i] * unit(d, j, i) for i in range(d) for j in range(i)]


def sp(d: int) -> list[Tensor]:
    j = symplectic(d // 2).to(torch.complex128)
    return [j @ (unit(d, a, b) + unit(d, b, a)) for a in range(d) for b in range(a + 1)]


def u(*signs: int) -> list[Tensor]:
    """All complex A with A^H D + D A = 0."""
    metric = torch.diag(torch.tensor(signs)).to(torch.complex128)
    return [w * e - metric @ (w * e).mH @ metric for e in gl(len(signs)) for w in (1, 1j)]


def complexified(matrices: list[Tensor]) -> list[Tensor]:
    return [w * a for a in matrices for w in (1, 1j)]


def quaternionic(q: int) -> list[Tensor]:
    """The compact sp(q): all complex [[X, Y], [-Y*, X*]] with X^H = -X and Y^T = Y."""
    ones = [torch.block_diag(x, x.conj()) for x in u(*[1] * q)]
    symmetric = complexified([e + e.T for e in gl(q)])
    zero = torch.zeros(q, q, dtype=torch.complex128)
    row = lambda a, b: torch.cat([a, b], 1)
    return ones + [torch.cat([row(zero, y), row(-y.conj(), zero)]) for y in symmetric]


def realified(matrices: list[Tensor]) -> list[Tensor]:
    """Complex matrices as real ones on (real parts, imaginary parts)."""
    same = torch.eye(2).double()
    return [torch.kron(same, a.real.contiguous()) + turn(a.imag) for a in matrices]


def turn(a: Tensor) -> Tensor:
    return torch.kron(torch.tensor([[0.0, -1.0], [1.0, 0.0]]).to(a), a.contiguous())


def beside(*algebras: list[Tensor]) -> list[Tensor]:
    """The algebras, each acting on coordinates of its own."""
    sizes = [len(matrices[0]) for matrices in algebras]
    zeros = [torch.zeros(n, n, dtype=torch.complex128) for n in sizes]
    return [
        torch.block_diag(*zeros[:place], a.to(torch.complex128), *zeros[place + 1 :])
        for place, matrices in enumerate(algebras)
        for a in matrices
    ]


def copies(matrices: list[Tensor], count: int) -> list[Tensor]:
    """One algebra acting alike on several vectors."""
    return [torch.kron(torch.eye(count).to(a), a.contiguous()) for a in matrices]


def basis(matrices: list[Tensor], *, turned: bool = True, noise: float = 0.0) -> Tensor:
    """An orthonormal basis of the real span, in other coordinates, with an error."""
    flat = torch.stack([a.real for a in matrices]).double()
    d = flat.shape[-1]
    rng = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(shape, generator=rng, dtype=torch.float64)
    change = torch.eye(d).double() + (0.3 / d**0.5) * normal(d, d) * turned
    flat = change @ flat @ torch.linalg.inv(change)
    _, sizes, rows = torch.linalg.svd(flat.flatten(1), full_matrices=False)
    rows = rows[sizes > 1e-8]
    return (rows + noise / d * normal(*rows.shape)).reshape(-1, d, d)


def symplectic(half: int) -> Tensor:
    j = torch.zeros(2 * half, 2 * half)
    j[:half, half:], j[half:, :half] = torch.eye(half), -torch.eye(half)
    return j


def length(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True)


def minkowski(negative: int):
    def square(x: Tensor) -> Tensor:
        return x[:, negative:].square().sum(1, True) - x[:, :negative].square().sum(1, True)

    return square


def area(x: Tensor) -> Tensor:
    """The symplectic form of two vectors."""
    return torch.einsum("ni,ij,nj->n", x[:, 0], symplectic(x.shape[-1] // 2).to(x), x[:, 1])[
        :, None
    ]


def _vectors(x: Tensor) -> Tensor:
    h = x.shape[-1] // 2
    return torch.complex(x[..., :h], x[..., h:])


def _parts(*numbers: Tensor) -> Tensor:
    return torch.stack([part for z in numbers for part in (z.real, z.imag)], -1)


def hermitian(x: Tensor) -> Tensor:
    z = _vectors(x)
    return _parts((z[:, 0].conj() * z[:, 1]).sum(-1))


def hermitian_and_volume(x: Tensor) -> Tensor:
    z = _vectors(x)
    return _parts((z[:, 0].conj() * z[:, 1]).sum(-1), torch.linalg.det(z))
