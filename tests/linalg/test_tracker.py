"""Laws of warm tracking on operators that change as training changes them."""

import math

import pytest
import torch

from eqtoolbox.linalg import (
    FunctionOperator,
    MatrixOperator,
    Tracker,
    basis,
    hessian,
    top_eigenpairs,
)

BULK = [0.3 * math.cos(i) for i in range(60)]


@pytest.fixture
def drifting(prescribed):
    """(step) -> a matrix whose top grows by 3 % and turns by about 3° per step."""
    A, _ = prescribed([3.0, 2.0, 1.5, *BULK])
    K = torch.triu(torch.randn(63, 63, generator=torch.Generator().manual_seed(1)).double(), 1)
    turn = torch.matrix_exp(0.006 * (K - K.T))

    def at(step):
        R = torch.linalg.matrix_power(turn, step)
        B = 1.03**step * R @ A @ R.T
        return (B + B.T) / 2

    return at


def _diagonal(*values):
    return MatrixOperator(torch.diag(torch.tensor([*values, *BULK], dtype=torch.float64)))


def test_a_slow_drift_is_followed_for_about_three_products(drifting):
    tracker = Tracker()
    tracker.update(MatrixOperator(drifting(0)))
    spent = 0
    for step in range(1, 60):
        found = tracker.update(MatrixOperator(drifting(step)))
        exact = torch.linalg.eigvalsh(drifting(step))[-1].item()
        spent += found.matvecs
        assert found.status == "ok"
        assert -1e-12 * exact <= exact - found.value <= 0.005 * exact
        assert found.deep or found.matvecs <= 8
    assert spent / 59 < 4


def test_residual_is_true_and_the_bound_covers_the_error(drifting):
    tracker = Tracker(rtol=0.05)
    for step in range(30):
        A = drifting(step)
        found = tracker.update(MatrixOperator(A))
        v = tracker.vectors[0]["x"]
        assert (A @ v - found.value * v).norm().item() == pytest.approx(found.residual, rel=1e-6)
        error = torch.linalg.eigvalsh(A)[-1].item() - found.value
        assert error <= 1.5 * found.bound + 1e-12


def test_several_eigenvalues_are_followed_together(drifting):
    tracker = Tracker(3)
    for step in range(30):
        found = tracker.update(MatrixOperator(drifting(step)))
        exact = torch.linalg.eigvalsh(drifting(step)).flip(0)[:3]
        assert found.values.shape == (3,)
        assert found.status == "ok"
        assert ((exact - found.values) / exact[0]).max() < 0.005


@pytest.mark.parametrize("seed", range(5))
def test_a_crossing_is_never_denied_for_long(seed):
    # the overtaking eigenvector is exactly orthogonal to the one that is followed
    tracker, denied = Tracker(seed=seed), 0
    for step in range(60):
        found = tracker.update(_diagonal(2.0, 1.0 + 0.04 * step))
        exact = max(2.0, 1.0 + 0.04 * step)
        denied += found.status == "ok" and exact - found.value > 0.01 * exact
        if found.deep and step > 30:
            assert exact - found.value < 0.01 * exact
    assert denied == 0


def test_a_tracker_that_never_looks_deep_is_fooled_by_a_crossing():
    tracker = Tracker(deep_every=1000)
    tracker._drifts = [0.0]  # as if the next in line had never moved
    for step in range(60):
        found = tracker.update(_diagonal(2.0, 1.0 + 0.04 * step))
    assert found.value == pytest.approx(2.0)


def test_the_bound_grows_with_the_pace_of_what_may_overtake(prescribed):
    A, _ = prescribed([2.0, 1.8, *BULK])
    K = torch.randn(62, 62, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turn = torch.matrix_exp(0.002 * (K - K.T))
    turned = turn @ A @ turn.T
    B = MatrixOperator((turned + turned.T) / 2)
    bounds = {}
    for drift in (0.0, 0.02, 0.04):  # ceilings of 1.8, 1.88 and 1.96
        tracker = Tracker()
        tracker.update(MatrixOperator(A))
        tracker._drifts = [drift]
        found = tracker.update(B)
        assert not found.deep
        bounds[drift] = found.bound
    assert bounds[0.02] == pytest.approx(bounds[0.0] * 0.2 / 0.12, rel=0.05)
    assert bounds[0.04] == pytest.approx(bounds[0.0] * 0.2 / 0.04, rel=0.05)


def test_the_bound_counts_an_eigenvalue_that_may_have_overtaken_unseen():
    tracker = Tracker(rtol=0.05)
    tracker.update(_diagonal(2.0, 1.8))
    found = tracker.update(_diagonal(1.85, 1.87))
    assert (found.deep, found.status) == (False, "ok")
    assert found.value == pytest.approx(1.85)
    assert 0.02 <= found.bound <= 0.05 * found.value


def test_a_jump_is_uncertain_or_right(prescribed):
    tracker = Tracker()
    for seed in range(20):
        A, _ = prescribed([3.0, 2.9, 2.8, *BULK], seed=seed)
        found = tracker.update(MatrixOperator(A))
        assert found.status == "uncertain" or found.value == pytest.approx(3, rel=0.01)


def test_too_few_products_are_uncertain(prescribed):
    A, _ = prescribed(torch.linspace(0, 1, 200).tolist())
    tracker = Tracker(max_matvecs=2, deep_matvecs=3)
    for _ in range(3):
        assert tracker.update(MatrixOperator(A)).status == "uncertain"


def test_deep_updates_come_as_scheduled(drifting):
    tracker = Tracker(deep_every=10)
    H = [MatrixOperator(drifting(step)) for step in range(31)]
    deep = [step for step in range(31) if tracker.update(H[step]).deep]
    assert deep == [0, 4, 14, 24]  # the second one comes early, to learn how fast things move


def test_parameters_are_matched_by_name(mlp):
    loss, params = mlp
    frozen = {n: p for n, p in params.items() if n != "last.bias"}
    tracker = Tracker()

    def partly(p):
        return loss({**params, **p})

    for some in (frozen, params, frozen, params):
        for _ in range(2):
            found = tracker.update(hessian(partly, some))
        exact = top_eigenpairs(hessian(partly, some), 1, tol=1e-8).values.item()
        assert list(tracker.vectors[0]) == list(some)
        assert exact - found.value < 0.02 * exact


def test_nothing_in_common_is_a_cold_start(drifting):
    tracker = Tracker()
    tracker.update(MatrixOperator(drifting(0)))
    renamed = FunctionOperator(
        lambda v: {"y": drifting(0) @ v["y"]}, {"y": torch.ones(63).double()}
    )
    found = tracker.update(renamed)
    assert found.deep
    assert found.value == pytest.approx(3, rel=0.005)


def test_a_resumed_tracker_continues_as_if_never_stopped(drifting):
    one, other = Tracker(), Tracker(seed=9)
    for step in range(30):
        if step == 12:
            other.load_state_dict(one.state_dict())
        expected = one.update(MatrixOperator(drifting(step)))
        if step >= 12:
            found = other.update(MatrixOperator(drifting(step)))
            assert (found.value, found.status, found.matvecs) == (
                expected.value,
                expected.status,
                expected.matvecs,
            )


def test_the_scale_of_the_operator_changes_no_decision(drifting):
    trackers = {factor: Tracker() for factor in (1.0, 2.0**-100)}
    for step in range(25):
        found = {f: t.update(MatrixOperator(f * drifting(step))) for f, t in trackers.items()}
        assert found[2.0**-100].value * 2.0**100 == pytest.approx(found[1.0].value, rel=1e-12)
        assert len({(f.status, f.matvecs) for f in found.values()}) == 1


@pytest.mark.parametrize("values", [[2.0], [2.0, 1.0], [0.0, 0.0], [-1.0, -2.0, -3.0]])
def test_tiny_and_negative_operators_are_exact(values):
    tracker = Tracker()
    for _ in range(25):
        found = tracker.update(MatrixOperator(torch.diag(torch.tensor(values)).double()))
        assert found.value == pytest.approx(values[0], abs=1e-12)
        assert found.status == "ok"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "tracker needs k >= 1"),
        ({"rtol": 0.0}, "0 < rtol < 1"),
        ({"k": 9}, r"max\(min_matvecs, k \+ 1\) <= max_matvecs"),
        ({"k": 2, "rows": 3}, r"rows must be >= k \+ 2 = 4, got 3"),
        ({"max_matvecs": 20}, "max_matvecs <= deep_matvecs, got 2, 20, 12"),
    ],
)
def test_tracker_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tracker(**arguments)


def test_a_space_or_state_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="k must be at most n=1, got 2"):
        Tracker(2).update(MatrixOperator(torch.eye(1)))
    with pytest.raises(ValueError, match="state must be of a tracker with k=2, got k=1"):
        Tracker(2).load_state_dict(Tracker().state_dict())


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("spare", [2, 4, None])
def test_no_more_rows_are_in_memory_than_allowed_and_bounds_hold(drifting, monkeypatch, k, spare):
    seen, resize = [0], basis._Rows.resize
    monkeypatch.setattr(basis, "BLOCK", 1)  # as of a large model: row by row
    monkeypatch.setattr(basis._Rows, "resize", lambda r, n: (seen.append(n), resize(r, n))[1])
    rows = None if spare is None else k + spare
    tracker = Tracker(k, rows=rows)
    for step in range(30):
        found = tracker.update(MatrixOperator(drifting(step)))
        exact = torch.linalg.eigvalsh(drifting(step))[-1].item()
        assert found.status == "ok"
        assert -1e-12 <= exact - found.value <= found.bound
    most = max(seen) - 1  # but for the vector to go on with
    assert most <= (rows or 12)
    assert rows is None or most == rows
    assert rows is not None or most > k + 4  # what limits are for
