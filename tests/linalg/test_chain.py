"""The chain of two vectors: what a search that keeps all of them finds, and what it refuses."""

import pytest
import torch

from eqtoolbox.linalg import MatrixOperator, finite_difference, top_eigenpairs
from eqtoolbox.linalg.chain import largest
from eqtoolbox.linalg.krylov import Asymmetric


def spectrum(kind: str, n: int, rng: torch.Generator) -> torch.Tensor:
    drawn = torch.rand(n, generator=rng, dtype=torch.float64)
    return {
        "semicircle": 2 * drawn - 1,
        "outliers": 100 * drawn**8,
        "zero": 0 * drawn,
        "negative": -drawn,
        "repeated": torch.cat([torch.full((3,), 5.0).double(), drawn])[:n],
    }[kind]


def symmetric(values: torch.Tensor, rng: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    n = len(values)
    turn = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))[0]
    made = (turn * values) @ turn.T
    return ((made + made.T) / 2).to(dtype)


@pytest.mark.parametrize("n", [1, 2, 3, 40, 150])
@pytest.mark.parametrize("kind", ["semicircle", "outliers", "zero", "negative", "repeated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_finds_what_a_search_with_all_vectors_finds_by_as_many_products(
    kind: str, n: int, dtype: torch.dtype
) -> None:
    rng = torch.Generator().manual_seed(n)
    matrix = symmetric(spectrum(kind, n, rng), rng, dtype)
    found, whole = (
        top_eigenpairs(
            MatrixOperator(matrix), 1, tol=1e-2, confirm=0, max_vectors=most,
            generator=torch.Generator().manual_seed(0),
        )
        for most in (2, None)
    )  # fmt: skip
    assert found.vectors == [] and not found.confirmed
    assert abs(found.matvecs - whole.matvecs) <= 1
    scale = max(whole.scale, 1e-30)
    assert found.values[0] == pytest.approx(whole.values[0].item(), abs=1e-4 * scale)
    assert found.residuals[0] == pytest.approx(whole.residuals[0].item(), abs=2e-3 * scale)
    assert found.converged.tolist() == whole.converged.tolist()


def test_copies_of_what_was_found_do_not_spoil_a_long_chain() -> None:
    """A hundred products after it is there: orthogonality is lost, and the value stays."""
    rng = torch.Generator().manual_seed(0)
    matrix = symmetric(spectrum("outliers", 150, rng), rng, torch.float32)
    H = MatrixOperator(matrix)
    found = largest(H, 0.0, 250, rng)
    true = torch.linalg.eigvalsh(matrix.double())[-1].item()
    assert found.matvecs == 150 and found.residual < 1e-4 * true
    assert found.value == pytest.approx(true, rel=1e-5)


def test_what_is_not_symmetric_or_not_finite_is_refused() -> None:
    made = torch.randn(30, 30, generator=torch.Generator().manual_seed(0))
    operator = MatrixOperator(made + made.T)
    operator._matrix = made  # type: ignore[attr-defined]
    with pytest.raises(Asymmetric, match="must be symmetric"):
        largest(operator, 1e-3, 30, torch.Generator().manual_seed(0))
    operator._matrix = made / 0  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match="must be finite"):
        largest(operator, 1e-3, 30, torch.Generator().manual_seed(0))


def test_products_that_are_differences_say_what_they_may_be_off_by() -> None:
    params = {"x": torch.linspace(1, 2, 5)}
    H = finite_difference(lambda p: (p["x"] ** 4).sum() / 12, params)
    found = top_eigenpairs(H, 1, max_vectors=2, confirm=0)
    assert found.values[0] == pytest.approx(4, abs=float(found.residuals[0]))
    assert found.residuals[0] >= H.accuracy * 4


def test_time_and_products_end_it() -> None:
    matrix = torch.diag(torch.linspace(0, 1, 200))
    few = top_eigenpairs(MatrixOperator(matrix), 1, tol=1e-6, max_matvecs=5, max_vectors=2)
    assert few.matvecs == 5 and not few.converged[0]
    none = top_eigenpairs(MatrixOperator(matrix), 1, tol=1e-6, max_vectors=2, seconds=0)
    assert none.matvecs == 1 and not none.converged[0]


@pytest.mark.parametrize(
    "asked", [{"k": 2}, {"k": 1, "which": "smallest"}, {"k": 1, "confirm": 8}], ids=str
)
def test_more_than_the_largest_value_takes_more_vectors(asked: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="max_vectors must be >= "):
        top_eigenpairs(MatrixOperator(torch.eye(9)), max_vectors=2, **asked)  # type: ignore[arg-type]
