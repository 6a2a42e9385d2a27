"""Finite-difference products against exact ones, and what they must refuse."""

import pytest
import torch
import torch.nn.functional as F

from eqtoolbox.linalg import finite_difference, hessian, top_eigenpairs
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
