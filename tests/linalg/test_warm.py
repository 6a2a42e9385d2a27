"""Laws of searches that go on from an earlier one: right, or not confirmed."""

from dataclasses import replace

import pytest
import torch

from eqtoolbox.linalg import MatrixOperator, top_eigenpairs, warm
from eqtoolbox.linalg.accept import error_bounds
from eqtoolbox.linalg.krylov import Krylov

BULK = torch.linspace(-1, 1, 90).tolist()
TOP = [8.0, 6.0, 5.0, 4.0, 3.0]


def turned(A, angle, seed=1):
    """A with its eigenvectors turned by a random rotation of about that angle each."""
    rng = torch.Generator().manual_seed(seed)
    K = torch.randn(A.shape, generator=rng, dtype=A.dtype) / len(A) ** 0.5
    R = torch.matrix_exp(angle * (K - K.T) / 2**0.5)
    B = R @ A @ R.T
    return (B + B.T) / 2


def known(Q, which, guard):
    """As if eigenvectors of these numbers had been found, and another were next in line."""
    found = top_eigenpairs(MatrixOperator(torch.eye(len(Q), dtype=Q.dtype)), 1)
    return replace(found, vectors=[{"x": Q[:, i]} for i in which], guard={"x": Q[:, guard]})


def errors(found, A, k):
    exact = torch.linalg.eigvalsh(A).flip(0)[:k]
    return (found.values - exact).abs().max() / torch.linalg.eigvalsh(A).abs().max()


def test_what_hardly_moved_costs_little_more_than_a_product_each(prescribed):
    A, _ = prescribed([*TOP, *BULK])
    cold = top_eigenpairs(MatrixOperator(A), 5, confirm=0)
    for angle, most in ((0.0, 6), (0.01, 8), (0.05, 12)):
        B = turned(A, angle)
        options = {"tol": 1e-3, "until": "values", "confirm": 0}
        found = top_eigenpairs(MatrixOperator(B), 5, start=cold, **options)
        assert found.converged.all()
        assert found.matvecs <= most < cold.matvecs
        assert errors(found, B, 5) <= 1e-3
        assert not found.confirmed


@pytest.mark.parametrize("angle", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("until", ["pairs", "values"])
def test_any_move_is_followed_and_confirmed(prescribed, angle, until):
    A, _ = prescribed([*TOP, *BULK])
    found = top_eigenpairs(MatrixOperator(A), 5)
    for step in range(4):
        A = turned(A, angle, seed=step)
        found = top_eigenpairs(MatrixOperator(A), 5, start=found, until=until)
        assert found.converged.all()
        assert found.confirmed
        assert errors(found, A, 5) <= 1e-3


# what the next operator has, and which of its eigenvectors were kept: none of them the new top
TRAPS = {
    "a new outlier": ([20.0, *TOP, *BULK], [1, 2, 3, 4, 5], 6),
    "two new outliers": ([20.0, 19.0, *TOP, *BULK], [2, 3, 4, 5, 6], 7),
    "a cluster above": ([8.03, 8.02, 8.01, *TOP, *BULK], [3, 4, 5, 6, 7], 8),
    "copies of the top": ([8.0, 8.0, *TOP, *BULK], [0, 3, 4, 5, 6], 7),
    "larger negative curvature": ([9.0, *TOP, *BULK, -50.0], [1, 2, 3, 4, 5], 6),
    "only the bulk": ([*TOP, *BULK], [40, 41, 42, 43, 44], 45),
    "the far end": ([*TOP, *BULK, -50.0], [95, 94, 93, 92, 91], 90),
}


@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.parametrize("until", ["pairs", "values"])
@pytest.mark.parametrize("seed", range(3))
def test_a_start_orthogonal_to_what_grew_is_no_trap(prescribed, name, until, seed):
    values, which, guard = TRAPS[name]
    A, Q = prescribed(values)
    Q = Q[:, : len(values)]
    rng = torch.Generator().manual_seed(seed)
    start = known(Q, which, guard)
    found = top_eigenpairs(MatrixOperator(A), 5, start=start, until=until, generator=rng)
    assert found.confirmed and bool(found.converged.all())
    assert errors(found, A, 5) <= 1e-3
    rng = torch.Generator().manual_seed(seed)
    quick = top_eigenpairs(MatrixOperator(A), 5, start=start, until=until, generator=rng, confirm=0)
    assert not quick.confirmed  # whatever it says of its pairs


@pytest.mark.parametrize("random", [True, False])
def test_the_random_half_of_the_guard_finds_an_outlier_without_fresh_chains(
    prescribed, monkeypatch, random
):
    if not random:
        monkeypatch.setattr(warm, "_noisy", lambda v, generator: v)
    A, Q = prescribed([20.0, *TOP, *BULK])
    found, seen = known(Q, [1, 2, 3, 4, 5], 6), []
    for step in range(4):
        rng = torch.Generator().manual_seed(step)
        found = top_eigenpairs(
            MatrixOperator(A), 5, start=found, generator=rng, until="values", confirm=0
        )
        seen.append(float(found.values[0]))
    assert seen[-1] == pytest.approx(20.0 if random else 8.0, rel=1e-3)


def test_values_are_there_before_their_vectors_and_within_their_bounds(prescribed):
    saved = 0
    for seed in range(8):
        A, _ = prescribed([*TOP, *BULK], seed=seed)
        rng = torch.Generator().manual_seed(seed)
        pairs = top_eigenpairs(MatrixOperator(A), 5, confirm=0, generator=rng)
        rng = torch.Generator().manual_seed(seed)
        found = top_eigenpairs(MatrixOperator(A), 5, confirm=0, generator=rng, until="values")
        exact = torch.linalg.eigvalsh(A).flip(0)[:5]
        assert ((found.values - exact).abs() <= found.error_bounds + 1e-12).all()
        assert (found.error_bounds <= 1e-3 * 8).all()
        saved += pairs.matvecs - found.matvecs
    assert saved >= 4


def test_an_exhausted_budget_of_values_says_so(prescribed):
    A, _ = prescribed(torch.linspace(0, 1, 60).tolist())
    found = top_eigenpairs(MatrixOperator(A), 3, until="values", max_matvecs=6)
    assert not found.converged.any()


def test_other_parameters_are_a_cold_start(prescribed):
    A, _ = prescribed([*TOP, *BULK])
    found = top_eigenpairs(MatrixOperator(A), 5)
    renamed = replace(found, vectors=[{"y": v["x"]} for v in found.vectors], guard=None)
    again = top_eigenpairs(MatrixOperator(A), 5, start=renamed)
    assert again.confirmed
    assert errors(again, A, 5) <= 1e-3


def test_turning_the_rows_beyond_changes_neither_space_nor_residuals(prescribed):
    A, Q = prescribed([*TOP, *BULK])
    starts = [{"x": Q[:, i] + 0.1 * Q[:, 20 + i]} for i in range(4)]
    krylov = Krylov(MatrixOperator(A), 20, torch.Generator().manual_seed(0), starts)
    for _ in range(4):
        krylov.step(0)
    before = krylov.ritz()
    krylov.turn(before.weights[:, -3:])
    after = krylov.ritz()
    torch.testing.assert_close(after.residuals, before.residuals)
    rows = torch.stack([krylov.basis.vector(i)["x"] for i in range(4, len(krylov.basis))])
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)).double())
    basis = torch.stack([krylov.basis.vector(i)["x"] for i in range(4)])
    rest = A @ basis.T - basis.T @ krylov._projected  # what H makes of the basis beyond it
    torch.testing.assert_close(rest, rows.T @ krylov._couplings.T)
    strongest = after.couplings[:, -3:].square().sum(1)
    assert strongest.argmax() == len(rows) - 1
    assert strongest[-1] >= before.couplings[:, -3:].square().sum(1).max() * (1 - 1e-12)


def test_bounds_hold_for_wanted_values_that_are_close_to_each_other(prescribed):
    """The bound of all together: residuals of a cluster over the distance to the rest."""
    A, Q = prescribed([5.0, 4.999, 4.998, *BULK])
    together, alone = [], []
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        noise = torch.randn(93, 6, generator=rng, dtype=torch.float64)
        starts = [{"x": Q[:, i] + 0.02 * noise[:, i]} for i in range(6)]
        krylov = Krylov(MatrixOperator(A), 20, rng, starts)
        for _ in range(6):
            krylov.step(0)
        ritz = krylov.ritz()
        wanted = torch.tensor([5, 4, 3])
        bounds = error_bounds(ritz, wanted)
        error = (ritz.values[wanted] - torch.tensor([5.0, 4.999, 4.998]).double()).abs()
        assert (error <= bounds).all()
        together.append(float(bounds.max()))
        alone.append(float(ritz.residuals[wanted].max()))
    assert sum(together) < 0.5 * sum(alone)


def test_a_wanted_neighbour_does_not_spoil_a_bound(prescribed):
    """Lehmann's: r²/gap to what is not wanted, at most twice that of half the gap."""
    A, Q = prescribed([5.0, 4.9, *BULK])
    noise = torch.randn(92, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    starts = [{"x": Q[:, i] + 0.005 * noise[:, j]} for j, i in enumerate((0, 1, 91))]
    krylov = Krylov(MatrixOperator(A), 20, torch.Generator().manual_seed(0), starts)
    for _ in starts:
        krylov.step(0)
    ritz, wanted = krylov.ritz(), torch.tensor([2, 1])
    bounds, r = error_bounds(ritz, wanted), ritz.residuals[wanted]
    exact = torch.tensor([5.0, 4.9]).double()
    gaps = ritz.values[wanted] - ritz.values[0] - ritz.residuals[0]
    assert ((ritz.values[wanted] - exact).abs() <= bounds).all()
    assert (bounds <= 2.1 * r**2 / gaps).all()
    assert (bounds < 0.5 * r).all()
    assert (bounds < 0.5 * r**2 / 0.1).all()  # what the neighbour would leave of it


def test_pairs_that_are_followed_are_there_at_the_tolerance(prescribed):
    A, _ = prescribed([*TOP, *BULK])
    cold = top_eigenpairs(MatrixOperator(A), 5, tol=1e-2)
    B = turned(A, 0.02)
    loose = top_eigenpairs(MatrixOperator(B), 5, tol=1e-2, start=cold, confirm=0)
    tight = top_eigenpairs(MatrixOperator(B), 5, tol=3e-3, start=cold, confirm=0)
    assert loose.converged.all() and float(loose.residuals.max()) <= 1e-2 * loose.scale
    assert loose.matvecs < tight.matvecs
    assert errors(loose, B, 5) <= 1e-3
