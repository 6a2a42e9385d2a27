"""Laws of the eigensolver on matrices with prescribed spectra and on networks."""

import pytest
import torch

from eqtoolbox.linalg import FunctionOperator, MatrixOperator, hessian, top_eigenpairs
from eqtoolbox.linalg.vectors import dot, norm

BULK = torch.linspace(-1, 1, 90).tolist()
SPECTRA = {
    "separated": [8.0, 4.0, 2.0, *BULK, -3.0],
    "clustered": [5.0, 4.999, 4.99, 4.9, *BULK, -4.99, -5.0],
    "repeated": [5.0, 5.0, 5.0, 3.0, *BULK, -2.0, -2.0],
    "plus-minus pairs": [4.0, -4.0, 3.0, -3.0, 2.0, -2.0] + [0.1] * 40,
    "rank deficient": [3.0, 2.0, 1.0] + [0.0] * 60,
    "negative": [-x for x in range(1, 40)],
    "few distinct": [2.0] * 10 + [1.0] * 10,
    "one": [1.0] * 20,
    "zero": [0.0] * 20,
    "uniform": torch.linspace(0, 1, 60).tolist(),
}
WHICH = ["largest", "smallest", "both", "magnitude"]


def _expected(values, k, which):
    down = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    if which == "largest":
        return down[:k]
    if which == "smallest":
        return down.flip(0)[:k]
    if which == "both":
        return torch.cat([down[:k], down[-1:]])
    return down[down.abs().argsort(descending=True)][:k].abs()


def _true_residuals(operator, found):
    return torch.tensor(
        [
            norm({n: hv - value * v[n] for n, hv in operator(v).items()})
            for value, v in zip(found.values.tolist(), found.vectors, strict=True)
        ],
        dtype=torch.float64,
    )


def _gram(vectors):
    return torch.tensor([[dot(a, b) for b in vectors] for a in vectors], dtype=torch.float64)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("k", [1, 4])
def test_outermost_eigenvalues_are_found_with_their_multiplicity(operator, spectrum, which, k):
    values = SPECTRA[spectrum]
    found = top_eigenpairs(operator(values), k, which=which, tol=1e-6, max_matvecs=400)
    got = found.values.abs() if which == "magnitude" else found.values
    assert found.converged.all()
    assert (got - _expected(values, k, which)).abs().max() <= 1e-6 * max(map(abs, values))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("budget", [9, 200])
def test_residuals_are_those_of_the_returned_vectors(operator, spectrum, dtype, budget):
    H = operator(SPECTRA[spectrum], dtype=dtype)
    found = top_eigenpairs(H, 3, which="both", max_matvecs=budget)
    rounding = 20 * torch.finfo(dtype).eps * found.scale
    true = _true_residuals(H, found)
    assert (true <= 1.01 * found.residuals + rounding).all()
    assert (found.residuals <= 1.01 * true + 100 * rounding).all()


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("budget", [7, 12, 200])
def test_vectors_are_orthonormal_and_errors_are_within_bounds(operator, spectrum, budget):
    values = SPECTRA[spectrum]
    found = top_eigenpairs(operator(values), 3, max_matvecs=budget, max_vectors=6)
    torch.testing.assert_close(
        _gram(found.vectors), torch.eye(3, dtype=torch.float64), atol=1e-13, rtol=0
    )
    assert (found.error_bounds <= found.residuals).all()
    nearest = (found.values[:, None] - torch.tensor(values, dtype=torch.float64)).abs().amin(1)
    assert (nearest <= found.residuals + 1e-13).all()


def test_error_bound_is_quadratic_in_the_residual_of_a_separated_pair(operator):
    found = top_eigenpairs(operator(SPECTRA["separated"]), 1, tol=1e-2)
    error = abs(found.values.item() - 8.0)
    assert error <= found.error_bounds.item() < found.residuals.item() ** 2 / 3


@pytest.mark.parametrize("n", [1, 2, 5])
def test_k_equal_to_n_gives_the_whole_spectrum(operator, n):
    values = [float(n - i) for i in range(n)]
    found = top_eigenpairs(operator(values), n)
    torch.testing.assert_close(found.values, torch.tensor(values, dtype=torch.float64))
    assert found.matvecs == n
    assert found.confirmed


def test_no_ghosts_in_float32(operator):
    # hessian-eigenthings 1.0's default returns 100 eight times here
    H = operator([100.0, 50.0, 20.0, 10.0, 5.0], n=2000, dtype=torch.float32)
    found = top_eigenpairs(H, 8, max_matvecs=100)
    expected = torch.tensor([100, 50, 20, 10, 5, 0, 0, 0], dtype=torch.float64)
    assert (found.values - expected).abs().max() < 1e-4
    assert found.converged.all()


def test_the_largest_is_algebraic_not_the_largest_magnitude(operator):
    assert top_eigenpairs(operator([1.0, -10.0, 0.5]), 1).values.item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1e-8, 1e8, 1e-30, 1e30])
def test_scaling_the_operator_changes_no_digit(prescribed, factor, dtype):
    A, _ = prescribed(SPECTRA["separated"], dtype=dtype)
    power = 2.0 ** round(torch.tensor(factor).log2().item())  # exact in binary
    one = top_eigenpairs(MatrixOperator(A), 3)
    other = top_eigenpairs(MatrixOperator(A * power), 3)
    torch.testing.assert_close(other.values / power, one.values, rtol=1e-6, atol=0)
    assert other.matvecs == one.matvecs
    assert torch.equal(other.converged, one.converged)


def test_a_tiny_loss_keeps_its_eigenvalues_distinct(mlp, dense):
    # PyHessian returns the largest twice at this scale
    loss, params = mlp
    single = {n: p.float() for n, p in params.items()}
    found = top_eigenpairs(hessian(lambda p: 1e-6 * loss(_double(p)), single), 2)
    exact = 1e-6 * torch.linalg.eigvalsh(dense(loss, params)).flip(0)[:2]
    torch.testing.assert_close(found.values, exact, rtol=1e-3, atol=0)
    assert found.converged.all()


def _double(p):
    return {n: x.double() for n, x in p.items()}


def test_defaults_find_the_sharpness_of_a_network(network, dense):
    loss, params = network
    found = top_eigenpairs(hessian(loss, params), 1)
    exact = torch.linalg.eigvalsh(dense(loss, params))
    assert found.converged.all()
    assert abs(found.values.item() - exact[-1].item()) < 1e-3 * exact.abs().max().item()


def test_both_ends_of_a_network_come_in_one_run(network, dense):
    loss, params = network
    found = top_eigenpairs(hessian(loss, params), 5, which="both", k_smallest=2, tol=1e-5)
    exact = torch.linalg.eigvalsh(dense(loss, params)).flip(0)
    expected = torch.cat([exact[:5], exact[-2:]])
    assert (found.values - expected).abs().max() < 1e-5 * found.scale


def test_restarts_change_nothing_but_memory(operator):
    H = operator(SPECTRA["uniform"])
    small = top_eigenpairs(H, 3, tol=1e-8, max_vectors=8, max_matvecs=900)
    large = top_eigenpairs(H, 3, tol=1e-8, max_vectors=60, max_matvecs=900)
    torch.testing.assert_close(small.values, large.values, rtol=0, atol=1e-8)
    assert small.converged.all()
    assert small.matvecs > large.matvecs


def test_equal_generators_give_equal_results_and_the_default_is_one_of_them(operator):
    H = operator(SPECTRA["separated"])
    runs = [
        top_eigenpairs(H, 2, generator=g)
        for g in (None, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    ]
    assert torch.equal(runs[0].values, runs[1].values)
    assert not torch.equal(runs[0].values, runs[2].values)


def test_a_warm_start_saves_products(prescribed):
    A, _ = prescribed(SPECTRA["separated"])
    cold = top_eigenpairs(MatrixOperator(A), 1, tol=1e-6)
    B = A + 1e-3 * prescribed(SPECTRA["uniform"] + [0.0] * 34, seed=7)[0]
    warm = top_eigenpairs(MatrixOperator(B), 1, start=cold.vectors[0], tol=1e-3, confirm=0)
    assert warm.converged.all()
    assert warm.matvecs <= 2


def test_a_start_orthogonal_to_the_top_is_no_trap(prescribed):
    A, Q = prescribed(SPECTRA["separated"])
    second = {"x": Q[:, 1]}
    fooled = top_eigenpairs(MatrixOperator(A), 1, start=second, confirm=0)
    assert fooled.values.item() == pytest.approx(4)
    assert not fooled.confirmed
    found = top_eigenpairs(MatrixOperator(A), 1, start=second)
    assert found.values.item() == pytest.approx(8, rel=1e-3)
    assert found.confirmed


def test_several_starts_are_used_together(prescribed):
    A, Q = prescribed(SPECTRA["separated"])
    starts = [{"x": Q[:, i]} for i in range(3)]
    found = top_eigenpairs(MatrixOperator(A), 3, start=starts, confirm=0)
    assert found.matvecs == 3
    torch.testing.assert_close(found.values, torch.tensor([8.0, 4, 2], dtype=torch.float64))


def test_an_exhausted_budget_says_so(operator):
    found = top_eigenpairs(operator(SPECTRA["uniform"]), 3, max_matvecs=6)
    assert found.matvecs == 6
    assert not found.converged.any()
    assert not found.confirmed


def test_one_chain_alone_misses_copies_and_does_not_claim_otherwise(operator):
    found = top_eigenpairs(operator(SPECTRA["repeated"]), 2, tol=1e-2, confirm=0)
    assert found.values[1].item() == pytest.approx(3, rel=1e-2)
    assert not found.confirmed


CLUSTERED = [1.0 - 0.6 * (i / 150) ** 0.7 for i in range(150)] + [0.0] * 150


@pytest.mark.parametrize("k", [1, 4])
def test_a_loose_tolerance_misses_no_member_of_a_cluster(operator, k):
    H, exact = operator(CLUSTERED), torch.tensor(CLUSTERED[:k], dtype=torch.float64)
    errors = {None: [], 0: []}
    for confirm, found in errors.items():
        for seed in range(10):
            rng = torch.Generator().manual_seed(seed)
            values = top_eigenpairs(H, k, tol=0.05, generator=rng, confirm=confirm).values
            found.append((exact - values).abs().max().item())
    assert max(errors[None]) < 0.02
    assert max(errors[0]) > 0.05  # what stopping at the tolerance returns


def test_projected_directions_have_curvature_zero(prescribed):
    A, Q = prescribed(SPECTRA["separated"])
    H = MatrixOperator(A).project_off([{"x": Q[:, 0]}])
    assert top_eigenpairs(H, 1, tol=1e-6).values.item() == pytest.approx(4)


def test_vectors_keep_names_shapes_and_precision(mlp):
    loss, params = mlp
    single = {n: p.float() for n, p in params.items()}
    H = hessian(lambda p: loss(_double(p)), single)
    (vector,) = top_eigenpairs(H, 1).vectors
    assert {n: x.shape for n, x in vector.items()} == {n: p.shape for n, p in params.items()}
    assert all(x.dtype == torch.float32 for x in vector.values())


@pytest.mark.parametrize("size", [1e-2, 1.0])
def test_a_map_that_is_not_symmetric_is_refused(prescribed, size):
    A, _ = prescribed(SPECTRA["separated"])
    skew = torch.zeros_like(A)
    skew[0, 1:] = size
    H = FunctionOperator(lambda v: {"x": (A + skew) @ v["x"]}, {"x": A[0]})
    with pytest.raises(ValueError, match=r"must be symmetric, got .*‖H‖ > .* in product 2"):
        top_eigenpairs(H, 1, tol=1e-9)


def test_a_random_map_is_refused(prescribed):
    A, _ = prescribed(SPECTRA["separated"])
    rng = torch.Generator().manual_seed(0)

    def dropped(v):
        return {"x": A @ (v["x"] * (torch.rand(len(A), generator=rng) > 0.1))}

    with pytest.raises(ValueError, match=r"the loss may be random \(dropout"):
        top_eigenpairs(FunctionOperator(dropped, {"x": A[0]}), 1)


def test_a_looser_accuracy_admits_a_noisy_map(prescribed):
    A, _ = prescribed(SPECTRA["separated"])
    rng = torch.Generator().manual_seed(0)

    def noisy(v):
        return {"x": A @ v["x"] + 1e-4 * torch.randn(len(A), generator=rng).double()}

    H = FunctionOperator(noisy, {"x": A[0]}, accuracy=1e-2)
    found = top_eigenpairs(H, 1, tol=1e-2)
    assert found.values.item() == pytest.approx(8, rel=1e-3)
    assert 0 < found.asymmetry < 1e-2


def test_products_that_are_not_finite_are_refused():
    H = FunctionOperator(lambda v: {"x": v["x"] * float("nan")}, {"x": torch.ones(3)})
    with pytest.raises(FloatingPointError, match="got norm nan in product 1"):
        top_eigenpairs(H, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 5}, r"k must be between 1 and n=3, got 5; ask for fewer"),
        ({"k": 0}, r"k must be between 1 and n=3, got 0"),
        ({"k": 3, "which": "both"}, r"k_smallest must be between 1 and n-k=0, got 1"),
        ({"k": 1, "which": "LA"}, "which must be one of"),
        ({"k": 1, "tol": 0.0}, "tol must be between 0 and 1, got 0.0"),
        ({"k": 2, "max_matvecs": 1}, "max_matvecs must be >= 2, one per eigenpair, got 1"),
        ({"k": 1, "max_vectors": 1}, "max_vectors must be >= 3"),
        ({"k": 1, "confirm": -1}, "confirm must be >= 0"),
        ({"k": 1, "start": {"x": torch.zeros(3)}}, "start must be finite and not zero"),
        ({"k": 1, "start": {"y": torch.ones(3)}}, "start must have the names"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    H = MatrixOperator(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(H, **arguments)


def test_a_search_whose_time_is_up_says_what_it_has_and_the_next_one_goes_on_from_it() -> None:
    values = torch.linspace(0.0, 1.0, 60).double().tolist()
    H, dense = MatrixOperator(torch.diag(torch.tensor(values).double())), sorted(values)[::-1]
    short = top_eigenpairs(H, 2, which="both", tol=1e-3, seconds=0.0)
    assert short.matvecs == 3 and not short.converged.any() and not short.confirmed
    for value, residual in zip(short.values.tolist(), short.residuals.tolist(), strict=True):
        assert min(abs(value - x) for x in values) <= residual, "an eigenvalue is as near"
    whole = top_eigenpairs(H, 2, which="both", tol=1e-3, start=short)
    assert whole.values.tolist() == pytest.approx([*dense[:2], dense[-1]], abs=1e-3)
    assert whole.converged.all() and whole.confirmed


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_two_chains_side_by_side_cost_less_than_one_after_the_other(operator, copies):
    """And what each meets once of an eigenspace is looked for once more."""
    top = [5.0, 4.5, *[4.0] * copies, 3.5, 3.0]
    H = operator([*top, *torch.linspace(0, 2.7, 300).tolist()])
    alone, found = (top_eigenpairs(H, 5, confirm=c) for c in (0, 8))
    assert found.confirmed and not alone.confirmed
    assert found.values.tolist() == pytest.approx(top[:5], rel=1e-5)
    assert (alone.values.tolist() == pytest.approx(top[:5], rel=1e-2)) == (copies == 1)
    assert copies > 1 or 20 <= found.matvecs < alone.matvecs + 8
    assert copies == 1 or found.matvecs >= 20 + 8
