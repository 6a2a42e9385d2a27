"""Laws of the operator algebra, against dense matrices."""

import numpy as np
import pytest
import torch

from eqtoolbox.linalg import FunctionOperator, MatrixOperator, hessian, preconditioned

A = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 1.0]], dtype=torch.float64)
B = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))


def _split(matrix):
    """The 3x3 matrix as an operator on {"w": (1, 2), "b": (1,)}."""

    def product(v):
        y = matrix @ torch.cat([v["w"].reshape(-1), v["b"]])
        return {"w": y[:2].reshape(1, 2), "b": y[2:]}

    example = {"w": torch.zeros(1, 2), "b": torch.zeros(1)}
    return FunctionOperator(product, {n: x.double() for n, x in example.items()})


def test_dense_recovers_the_matrix():
    assert torch.equal(MatrixOperator(A).dense(), A)
    assert torch.equal(_split(A).dense(), A)


def test_sum_and_multiple_are_those_of_the_matrices():
    H = 2 * MatrixOperator(A) - MatrixOperator(B) + (-MatrixOperator(B)) * 3.0
    torch.testing.assert_close(H.dense(), 2 * A - 4 * B)


def test_restriction_is_the_diagonal_block():
    assert torch.equal(_split(A).restrict("w").dense(), A[:2, :2])
    assert torch.equal(_split(A).restrict("b", "w*").dense(), A)
    assert list(_split(A).restrict("b", "w").space.like) == ["w", "b"]


def test_projection_keeps_or_removes_the_directions():
    direction = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    P = torch.outer(direction, direction) / 2
    off = torch.eye(3, dtype=torch.float64) - P
    H = MatrixOperator(A)
    twice = [{"x": direction}, {"x": 5 * direction}]
    torch.testing.assert_close(H.project_off(twice).dense(), off @ A @ off)
    torch.testing.assert_close(H.project_onto(twice).dense(), P @ A @ P)
    by_function = H.project_off(lambda v: {"x": P @ v["x"]})
    torch.testing.assert_close(by_function.dense(), off @ A @ off)


def test_preconditioning_divides_by_roots():
    p = torch.tensor([4.0, 9.0, 16.0], dtype=torch.float64)
    expected = A / p.sqrt()[:, None] / p.sqrt()
    torch.testing.assert_close(preconditioned(MatrixOperator(A), {"x": p}).dense(), expected)


def test_products_are_counted_on_every_operator_of_an_expression():
    H = MatrixOperator(A)
    both = H + H
    both({"x": torch.ones(3, dtype=torch.float64)})
    assert (H.matvecs, both.matvecs) == (2, 1)
    _split(A).dense()


def test_matrices_come_from_numpy_and_integers():
    assert MatrixOperator(np.eye(2)).dense().tolist() == [[1, 0], [0, 1]]
    assert MatrixOperator(torch.eye(2, dtype=torch.long)).dense().dtype == torch.float64


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(2, 3), "must be square"),
        (torch.tensor([[0.0, 1.0], [0.0, 0.0]]), "must be symmetric"),
        (torch.tensor([[float("nan")]]), "must be finite"),
        (torch.eye(2, dtype=torch.cfloat), "real floating point"),
    ],
)
def test_matrix_operator_refuses(matrix, message):
    with pytest.raises(ValueError, match=message):
        MatrixOperator(matrix)


def test_a_vector_of_another_space_is_refused():
    with pytest.raises(ValueError, match="names of its space"):
        MatrixOperator(A)({"y": torch.ones(3)})
    with pytest.raises(ValueError, match="names of its space"):
        MatrixOperator(A) + _split(A)


def test_a_product_of_another_space_is_refused():
    H = FunctionOperator(lambda v: {"x": v["x"][:1]}, {"x": torch.ones(2)})
    with pytest.raises(ValueError, match=r"the operator's product\['x'\]"):
        H({"x": torch.ones(2)})


def test_a_pattern_without_match_is_refused():
    with pytest.raises(
        ValueError, match=r"'bias' must match a name of the space, got \['w', 'b'\]"
    ):
        _split(A).restrict("bias")


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_a_preconditioner_must_be_positive(bad):
    with pytest.raises(ValueError, match="positive and finite"):
        preconditioned(MatrixOperator(torch.eye(1)), {"x": torch.tensor([bad])})


def test_a_name_with_brackets_is_a_name() -> None:
    params = {"w[0]": torch.tensor([2.0]), "w0": torch.tensor([3.0])}
    H = hessian(lambda p: p["w[0]"].sum() ** 3 + p["w0"].sum() ** 2, params)
    assert H.restrict("w[0]")({"w[0]": torch.ones(1)})["w[0]"].item() == pytest.approx(12)
