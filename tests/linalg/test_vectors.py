"""Laws of dict vectors and of orthonormal bases."""

import math

import pytest
import torch

from eqtoolbox.linalg.basis import Basis
from eqtoolbox.linalg.vectors import Space, add, combine, dot, norm, random_like, zeros_like


def _pair(dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    like = {"a": torch.zeros(3, 4, dtype=dtype), "b": torch.zeros((), dtype=dtype)}
    return random_like(like, rng), random_like(like, rng)


def _flat(v):
    return torch.cat([x.double().reshape(-1) for x in v.values()])


def test_dot_is_the_flat_inner_product():
    a, b = _pair()
    assert dot(a, b) == pytest.approx(float(_flat(a) @ _flat(b)), rel=1e-14)


def test_dot_of_a_long_float32_vector_is_exact_to_seven_digits():
    x = torch.full((3_000_000,), 0.1)
    exact = 3_000_000 * float(x[0].double() ** 2)
    assert dot({"x": x}, {"x": x}) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norm_neither_underflows_nor_overflows_in_float32(size):
    assert norm({"x": torch.full((4,), size)}) == pytest.approx(2 * size, rel=1e-6)


def test_combine_and_add_are_linear():
    a, b = _pair()
    torch.testing.assert_close(_flat(combine([a, b], [2.0, -1.0])), 2 * _flat(a) - _flat(b))
    torch.testing.assert_close(_flat(add(a, b, -3.0)), _flat(a) - 3 * _flat(b))


def test_combine_leaves_its_vectors_alone():
    a, b = _pair()
    before = _flat(a)
    combine([a, b], [1.0, 1.0])
    assert torch.equal(before, _flat(a))


def test_combine_refuses_a_missing_coefficient():
    with pytest.raises(ValueError, match="got 1 vectors and 2 coefficients"):
        combine([_pair()[0]], [1.0, 2.0])


def test_random_entries_have_unit_variance_and_signs_have_unit_square():
    rng, like = torch.Generator().manual_seed(3), {"x": torch.zeros(10_000)}
    gaussian, signs = random_like(like, rng), random_like(like, rng, "signs")
    assert abs(norm(gaussian) ** 2 / 10_000 - 1) < 4 * math.sqrt(2 / 10_000)
    assert torch.equal(signs["x"].abs(), torch.ones(10_000))
    assert abs(signs["x"].mean()) < 4 / 100


def test_equal_generators_draw_equal_vectors():
    assert torch.equal(_flat(_pair()[0]), _flat(_pair()[0]))


def test_a_space_has_no_storage_and_raises_half_precision():
    space = Space.of({"x": torch.zeros(1000, 1000, dtype=torch.bfloat16)})
    assert space.size == 1_000_000
    assert space.like["x"].dtype == torch.float32
    assert space.like["x"].untyped_storage().nbytes() == 4


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"x": torch.zeros(2, dtype=torch.long)}, r"real floating point tensor, got torch.int64"),
        ({"x": torch.zeros(2, dtype=torch.cfloat)}, "view_as_real"),
        ({"x": torch.zeros(0)}, "at least one entry"),
        ({}, "at least one entry"),
    ],
)
def test_a_space_refuses_what_has_no_real_entries(example, message):
    with pytest.raises(ValueError, match=message):
        Space.of(example)


@pytest.mark.parametrize(
    "vector",
    [{"x": torch.zeros(3)}, {"y": torch.zeros(2)}, {"x": torch.zeros(2, dtype=torch.float64)}],
)
def test_a_space_refuses_strangers(vector):
    with pytest.raises(ValueError, match="vector"):
        Space.of({"x": torch.zeros(2)}).check(vector)


def test_basis_is_orthonormal_and_leaves_out_dependent_vectors():
    a, b = _pair()
    basis = Basis.spanning([a, b, add(a, b), zeros_like(a)])
    Q = torch.stack([_flat(basis.vector(i)) for i in range(len(basis))])
    assert len(basis) == 2
    torch.testing.assert_close(Q @ Q.T, torch.eye(2, dtype=torch.float64), atol=1e-14, rtol=0)


def test_projection_is_idempotent_and_keeps_its_span():
    a, b = _pair()
    basis = Basis.spanning([a])
    once = basis.project(b)
    torch.testing.assert_close(_flat(basis.project(once)), _flat(once))
    torch.testing.assert_close(_flat(basis.project(a)), _flat(a))
    assert abs(dot(add(b, once, -1), a)) < 1e-14


def test_rotation_gives_the_combinations_it_names():
    a, b = _pair()
    basis = Basis.spanning([a, b])
    turn = torch.tensor([[0.6], [0.8]], dtype=torch.float64)
    expected = basis.combine(turn)[0]
    basis.rotate(turn)
    assert len(basis) == 1
    torch.testing.assert_close(_flat(basis.vector(0)), _flat(expected))


def test_a_basis_holds_mixed_precisions():
    v = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.float64)}
    basis = Basis.spanning([v])
    assert [x.dtype for x in basis.vector(0).values()] == [torch.float32, torch.float64]
    assert basis.coefficients(basis.pack(v)).item() == pytest.approx(math.sqrt(5))


def test_basis_coefficients_are_not_rounded_under_autocast():
    v = {"x": torch.linspace(1, 2, 1000)}
    with torch.autocast("cpu", torch.bfloat16):
        basis = Basis.spanning([v])
        assert basis.coefficients(basis.pack(v)).item() == pytest.approx(norm(v), rel=1e-6)


def test_a_basis_of_nothing_is_refused():
    with pytest.raises(ValueError, match="not zero"):
        Basis.spanning([{"x": torch.zeros(2)}])
    with pytest.raises(ValueError, match="at least one vector"):
        Basis.spanning([])
