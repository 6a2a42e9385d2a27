"""Finite-difference products against exact ones, and what they must refuse."""

import pytest
import torch
import torch.nn.functional as F

from eqtoolbox.linalg import Tracker, finite_difference, hessian, preconditioned, top_eigenpairs
from eqtoolbox.linalg.finite_difference import FiniteDifference
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import add, norm, random_like


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("scheme", "power"), [("central", 2 / 3), ("one_sided", 1 / 2)])
def test_finite_differences_reach_the_accuracy_of_their_order(mlp, dtype, scheme, power):
    loss, params = mlp
    params = {n: p.to(dtype) for n, p in params.items()}

    def cast(p):
        return loss({n: x.double() for n, x in p.items()}).to(dtype)

    exact, H = hessian(cast, params), finite_difference(cast, params, scheme=scheme)
    rng = torch.Generator().manual_seed(0)
    top = top_eigenpairs(exact, 1).vectors[0]
    for v in (random_like(params, rng), top, add(top, random_like(params, rng), 0.01)):
        error = norm(add(H(v), exact(v), -1.0)) / norm(exact(v))
        assert error < 20 * torch.finfo(dtype).eps ** power
        assert error < H.accuracy


def test_finite_differences_are_homogeneous_and_cost_what_they_say(mlp):
    loss, params = mlp
    H = finite_difference(loss, params, scheme="one_sided")
    H(params)
    before = H.evaluations
    large = H({n: 1e6 * p for n, p in params.items()})
    assert H.evaluations == before + 1
    torch.testing.assert_close({n: x / 1e6 for n, x in large.items()}, H(params))
    central = finite_difference(loss, params)
    central(params)
    before = central.evaluations
    central(params)
    assert central.evaluations == before + 2


def test_a_gradient_function_serves_as_well_as_a_loss(mlp):
    loss, params = mlp
    by_loss, by_gradient = (finite_difference(f, params) for f in (loss, torch.func.grad(loss)))
    torch.testing.assert_close(by_loss(params), by_gradient(params))


def test_a_step_that_held_a_kink_is_not_tried_again():
    """The longer step that the product asks for holds a kink, and the shorter one is right."""
    rng = torch.Generator().manual_seed(0)
    kinks = 1 + 1e-6 * torch.rand(2000, generator=rng).double()
    params = {"x": torch.ones(1).double()}

    def loss(p):
        return (p["x"] ** 2 + (p["x"] - kinks).relu().sum()).sum()

    for stiffness in (2.0, None):
        H = FiniteDifference(loss, params, stiffness=stiffness)
        assert H({"x": torch.ones(1).double()})["x"].item() == pytest.approx(2.0, rel=1e-2)
        assert H.evaluations <= 1 + 2 * 4


@pytest.mark.parametrize(
    ("slope", "curvature", "bend", "away"),
    [(10.0, 0.01, 1.0, 1e-4), (1.0, 0.001, 100.0, 5e-2), (10.0, 0.1, 10.0, 1e-3)],
)
def test_a_difference_that_is_rounding_does_not_stand_for_one_without_a_kink(
    slope, curvature, bend, away
):
    """The product is hidden by rounding at steps so short that they hold no kink."""
    near = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kinks = (1 + away * (0.5 + near)).float()

    def loss(p):
        smooth = (curvature * p["x"] ** 2 / 2 + slope * p["x"]).sum()
        return smooth + bend * (p["x"][0] - kinks).relu().mean()

    H = finite_difference(loss, {"x": torch.ones(1)})
    with pytest.raises(ValueError, match="smooth gradient"):
        H({"x": torch.ones(1)})


@pytest.mark.parametrize("scheme", ["central", "one_sided"])
def test_kinks_are_refused(scheme):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(500, 10, generator=rng)
    params = {"w": torch.randn(50, 10, generator=rng), "v": torch.randn(50, generator=rng)}

    def loss(p):
        return ((F.relu(x @ p["w"].T) @ p["v"]).square()).mean()

    v = random_like(params, rng)
    with pytest.raises(
        ValueError, match="need a smooth gradient, got a relative second difference"
    ):
        finite_difference(loss, params, scheme=scheme, rho=1e-2)(v)


def test_noise_is_refused():
    rng = torch.Generator().manual_seed(0)

    def loss(p):
        mask = torch.rand(1000, generator=rng) > 0.5
        return (p["x"] * mask).square().sum()

    with pytest.raises(ValueError, match="noise such as dropout"):
        finite_difference(loss, {"x": torch.ones(1000)})({"x": torch.ones(1000)})


def test_flat_directions_are_zero_not_kinked():
    H = finite_difference(lambda p: (p["a"] ** 2).sum() + p["b"].sum(), _two())
    flat = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert norm(H(flat)) < 1e-5
    assert norm(H({n: torch.zeros(2) for n in "ab"})) == 0


def _two():
    return {"a": torch.ones(2), "b": torch.ones(2)}


def test_lanczos_runs_on_finite_differences(mlp):
    loss, params = mlp
    for scheme, error in (("central", 1e-6), ("one_sided", 1e-4)):
        found = top_eigenpairs(finite_difference(loss, params, scheme=scheme), 2)
        exact = top_eigenpairs(hessian(loss, params), 2)
        torch.testing.assert_close(found.values, exact.values, rtol=error, atol=0)
        assert found.converged.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "forward"}, "scheme must be 'central' or 'one_sided', got 'forward'"),
        ({"rho": 0.0}, "rho must be between 0 and 1, got 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        finite_difference(lambda p: p["x"].sum(), {"x": torch.ones(1)}, **arguments)


def _outermost(seed, scheme):
    """Eigenvalues of a tanh network by differences in float32 with their bounds, and the truth."""
    g = torch.Generator().manual_seed(seed)
    weights = {"a": torch.randn(4, 6, generator=g), "b": torch.randn(6, 2, generator=g)}
    x, y = torch.randn(32, 4, generator=g), torch.randn(32, 2, generator=g)

    def loss(p):
        return (torch.tanh(x.to(p["a"]) @ p["a"]) @ p["b"] - y.to(p["a"])).square().mean()

    def flat(v):
        return loss({"a": v[:24].view(4, 6), "b": v[24:].view(6, 2)})

    point = torch.cat([w.flatten() for w in weights.values()]).double()
    truth = torch.linalg.eigvalsh(torch.autograd.functional.hessian(flat, point))
    operator = finite_difference(loss, weights, scheme=scheme)
    return operator, truth[[-1, 0]]


@pytest.mark.parametrize("scheme", ["central", "one_sided"])
@pytest.mark.parametrize("seed", range(8))
def test_the_bound_of_a_differenced_eigenvalue_holds_the_error_of_the_difference(seed, scheme):
    operator, truth = _outermost(seed, scheme)
    found = top_eigenpairs(operator, 1, which="both", tol=1e-3)
    errors = (found.values - truth).abs()
    assert (errors <= found.error_bounds).all()
    assert (found.error_bounds <= found.residuals).all()
    assert (found.residuals <= 0.02 * truth.abs().max()).all()


def test_without_its_doubt_a_differenced_eigenvalue_is_outside_of_its_bound(monkeypatch):
    monkeypatch.setattr(FiniteDifference, "product_error", LinearOperator.product_error)
    outside = 0
    for seed in range(8):
        operator, truth = _outermost(seed, "one_sided")
        found = top_eigenpairs(operator, 1, which="both", tol=1e-3)
        outside += int(((found.values - truth).abs() > found.error_bounds).sum())
    assert outside >= 12


def test_what_is_made_of_a_differenced_operator_shares_its_doubt():
    operator, _ = _outermost(0, "one_sided")
    generator = torch.Generator().manual_seed(1)
    v = random_like(operator.space.like, generator)
    doubt = operator.product_error(v)
    assert norm(doubt) > 0
    assert norm(add((3 * operator - operator).product_error(v), doubt, -2.0)) <= 1e-6 * norm(doubt)
    assert norm(operator.project_off([v]).product_error(v)) <= 1e-6 * norm(doubt)
    block = operator.restrict("a")
    padded = {"a": v["a"], "b": torch.zeros_like(v["b"])}
    assert torch.equal(block.product_error({"a": v["a"]})["a"], operator.product_error(padded)["a"])
    metric = {n: torch.full_like(x, 4.0) for n, x in v.items()}
    quarter = preconditioned(operator, metric).product_error(v)
    assert norm(add(quarter, doubt, -0.25)) <= 1e-3 * norm(doubt)


def test_an_exact_product_is_in_no_doubt(mlp):
    loss, params = mlp
    assert norm(hessian(loss, params).product_error(params)) == 0


def _tracked(seed, scheme):
    """How far a tracked eigenvalue is from the truth, over its bound."""
    operator, truth = _outermost(seed, scheme)
    found = Tracker(rtol=0.05).update(operator)
    return abs(found.value - float(truth[0])) / found.bound


@pytest.mark.parametrize("scheme", ["central", "one_sided"])
@pytest.mark.parametrize("seed", range(8))
def test_the_bound_of_a_tracked_eigenvalue_holds_the_error_of_the_difference(seed, scheme):
    assert _tracked(seed, scheme) <= 1


def test_without_that_error_a_tracked_eigenvalue_is_outside_of_its_bound(monkeypatch):
    monkeypatch.setattr(FiniteDifference, "product_error", LinearOperator.product_error)
    found = [_tracked(seed, scheme) for seed in range(8) for scheme in ("central", "one_sided")]
    assert max(found) > 1


@pytest.mark.parametrize("scheme", ["central", "one_sided"])
def test_products_that_estimate_errors_are_counted_and_within_the_budget(scheme):
    operator, _ = _outermost(0, scheme)
    before = operator.evaluations
    found = top_eigenpairs(operator, 3, which="both", tol=1e-9, max_matvecs=20)
    computed = (operator.evaluations - before) / (2 if scheme == "central" else 1)
    assert found.matvecs == 20
    assert computed <= 21 + 8 * (scheme == "one_sided"), "the first step is sought"
    tracked = Tracker().update(operator)
    assert tracked.matvecs <= Tracker().deep_matvecs
