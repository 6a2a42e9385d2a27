"""Gauss-Newton products against dense ones."""

import pytest
import torch
import torch.nn.functional as F

from eqtoolbox.linalg import gauss_newton, hessian
from eqtoolbox.linalg.vectors import norm

LABELS = torch.arange(20) % 3


def _model():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=rng, dtype=torch.float64)
    params = {
        "first": torch.randn(6, 5, generator=rng, dtype=torch.float64) / 2,
        "last": torch.randn(3, 6, generator=rng, dtype=torch.float64) / 2,
    }
    return lambda p: torch.tanh(x @ p["first"].T) @ p["last"].T, params


def _cross_entropy(y):
    return F.cross_entropy(y, LABELS)


def _dense(model, output_loss, params):
    jacobian = torch.func.jacrev(model)(params)
    J = torch.cat([j.reshape(60, -1) for j in jacobian.values()], dim=1)
    curvature = torch.func.hessian(output_loss)(model(params)).reshape(60, 60)
    return J.T @ curvature @ J


@pytest.mark.parametrize("output_loss", [_cross_entropy, lambda y: y.square().sum()])
def test_gauss_newton_equals_the_dense_product(output_loss):
    model, params = _model()
    G = gauss_newton(model, output_loss, params).dense()
    exact = _dense(model, output_loss, params)
    assert (G - exact).abs().max() < 1e-13 * exact.abs().max()
    assert torch.linalg.eigvalsh(exact)[0] > -1e-12


def test_gauss_newton_is_not_the_hessian_of_a_curved_model():
    model, params = _model()
    G = gauss_newton(model, _cross_entropy, params).dense()
    H = hessian(lambda p: _cross_entropy(model(p)), params).dense()
    assert (G - H).norm() > 1e-2 * H.norm()


def test_gauss_newton_is_the_hessian_of_a_linear_model():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=rng, dtype=torch.float64)
    params = {"w": torch.randn(3, 4, generator=rng, dtype=torch.float64)}

    def model(p):
        return x @ p["w"].T

    G = gauss_newton(model, _cross_entropy, params)
    torch.testing.assert_close(
        G.dense(), hessian(lambda p: _cross_entropy(model(p)), params).dense()
    )


def test_a_linear_output_loss_has_no_gauss_newton_curvature():
    model, params = _model()
    G = gauss_newton(model, lambda y: y.sum(), params)
    assert norm(G(params)) == 0


def test_parameters_the_model_does_not_use_get_zeros():
    model, params = _model()
    unused = {**params, "unused": torch.ones(2).double()}
    product = gauss_newton(model, _cross_entropy, unused)(unused)
    assert product["unused"].tolist() == [0, 0]
    assert norm(product) > 0


def test_outputs_that_ignore_the_parameters_are_refused():
    with pytest.raises(ValueError, match="outputs must depend on the parameters"):
        gauss_newton(lambda p: torch.ones(3), lambda y: y.sum(), {"x": torch.ones(2)})
