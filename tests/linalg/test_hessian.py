"""Hessian products against dense torch.func Hessians and closed forms."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqtoolbox.linalg import energy_share, finite_difference, hessian, top_eigenpairs
from eqtoolbox.linalg.vectors import norm


@pytest.mark.parametrize("forward", [False, True])
def test_hessian_equals_the_dense_one(network, dense, forward):
    loss, params = network
    H = hessian(loss, params, forward=forward).dense()
    exact = dense(loss, params)
    assert (H - exact).abs().max() < 1e-13 * exact.abs().max()


@pytest.mark.parametrize("forward", [False, True])
def test_gradient_and_loss_come_with_it(network, forward):
    loss, params = network
    H = hessian(loss, params, forward=forward)
    gradient = torch.func.grad(loss)(params)
    assert H.loss_value == loss(params).item()
    for name, g in H.gradient.items():
        torch.testing.assert_close(g, gradient[name])
        assert not g.requires_grad


@pytest.mark.parametrize("forward", [False, True])
def test_a_block_is_the_block_of_the_whole(network, dense, forward):
    loss, params = network
    first = next(iter(params))
    n = params[first].numel()
    block = hessian(loss, params, forward=forward).restrict(first).dense()
    torch.testing.assert_close(block, dense(loss, params)[:n, :n])


@pytest.mark.parametrize("forward", [False, True])
def test_a_block_off_the_first_names_is_right_too(mlp, dense, forward):
    loss, params = mlp
    torch.testing.assert_close(
        hessian(loss, params, forward=forward).restrict("last.*").dense(),
        dense(loss, params)[-21:, -21:],
    )


def test_forward_over_reverse_says_what_it_cannot(mlp):
    loss, params = mlp

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            return 3 * g * ctx.saved_tensors[0] ** 2

    def cubed(p):
        return loss(p) + Cube.apply(p["last.bias"]).sum()

    hessian(cubed, params)(params)
    with pytest.raises(RuntimeError, match="forward mode AD"):
        hessian(cubed, params, forward=True)(params)


def test_products_repeat_bitwise_on_the_retained_graph(mlp):
    loss, params = mlp
    H = hessian(loss, params)
    once, again = H(params), H(params)
    assert all(torch.equal(once[n], again[n]) for n in params)


@pytest.mark.parametrize("forward", [False, True])
def test_a_released_graph_is_built_again(mlp, forward):
    loss, params = mlp
    with hessian(loss, params, forward=forward) as H:
        before = H(params)
    after = H(params)
    assert all(torch.equal(before[n], after[n]) for n in params)


def test_the_graph_survives_an_optimizer_step_on_the_live_parameters(mlp):
    loss, params = mlp
    H = hessian(loss, params)
    before = H(params)
    v = {n: p.clone() for n, p in params.items()}
    for p in params.values():
        p.mul_(2)
    after = H(v)
    assert all(torch.equal(before[n], after[n]) for n in params)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mlp, mode):
    loss, params = mlp
    with mode():
        H = hessian(loss, params)
        product = H(params)
    torch.testing.assert_close(product, hessian(loss, params)(params))


def test_live_parameters_keep_their_gradients_and_hooks(mlp):
    loss, params = mlp
    live = {n: p.requires_grad_() for n, p in params.items()}
    fired = []
    for p in live.values():
        p.register_hook(fired.append)
    hessian(loss, live)({n: p.detach() for n, p in live.items()})
    assert not fired
    assert all(p.grad is None for p in live.values())


def test_uneven_batches_count_by_their_weight(mlp, dense):
    _, params = mlp
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(33, 5, generator=rng, dtype=torch.float64)
    y = torch.arange(33) % 3

    def on(rows):
        def loss(p):
            h = torch.tanh(x[rows] @ p["first.weight"].T + p["first.bias"])
            return F.cross_entropy(h @ p["last.weight"].T + p["last.bias"], y[rows])

        return loss

    exact = dense(on(slice(0, 33)), params)
    batches = [on(slice(0, 32)), on(slice(32, 33))]
    for retain in (None, True):
        H = hessian(batches, params, weights=[32, 1], retain=retain)
        assert (H.dense() - exact).abs().max() < 1e-13 * exact.abs().max()
    assert H.loss_value == pytest.approx(on(slice(0, 33))(params).item(), rel=1e-14)
    equal = hessian(batches, params, weights=[1, 1]).dense()
    assert (equal - exact).norm() > 0.3 * exact.norm()  # what equal weights would return


def test_several_losses_without_weights_are_refused(mlp):
    loss, params = mlp
    with pytest.raises(ValueError, match="weights must be given for 2 losses"):
        hessian([loss, loss], params)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, float("nan")]])
def test_weights_must_be_positive_and_as_many_as_losses(mlp, weights):
    loss, params = mlp
    with pytest.raises(ValueError, match="weights must be 2 positive finite numbers"):
        hessian([loss, loss], params, weights=weights)


def test_streamed_losses_hold_one_graph_at_a_time(mlp):
    loss, params = mlp
    alive = []

    def counted(p):
        value = loss(p)
        alive.append(value)
        return value

    H = hessian([counted] * 3, params, weights=[1, 1, 1])
    H(params)
    assert len(alive) == 3
    assert all(graph._built is None for graph in H._graphs)


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_gradients_are_as_good_as_dense_ones(sparse):
    params = {"table": torch.linspace(-1, 1, 12).reshape(6, 2), "w": torch.ones(2)}
    rows = torch.tensor([0, 2, 2, 5])

    def loss(p):
        return (torch.tanh(F.embedding(rows, p["table"], sparse=sparse)) @ p["w"]).square().sum()

    def plain(p):
        return (torch.tanh(p["table"][rows]) @ p["w"]).square().sum()

    H, exact = hessian(loss, params), hessian(plain, params)
    with torch.no_grad():
        torch.testing.assert_close(H.dense(), exact.dense())
    torch.testing.assert_close(H.gradient, exact.gradient)
    torch.testing.assert_close(finite_difference(loss, params).gradient, exact.gradient)


@pytest.mark.parametrize("forward", [False, True])
def test_unused_parameters_get_zeros(forward):
    params = {"used": torch.ones(2), "unused": torch.ones(3)}
    H = hessian(lambda p: (p["used"] ** 3).sum(), params, forward=forward)
    product = H(params)
    assert product["used"].tolist() == [6, 6]
    assert product["unused"].tolist() == [0, 0, 0]
    assert H.restrict("unused")({"unused": torch.ones(3)})["unused"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("forward", [False, True])
def test_a_linear_loss_has_zero_hessian(forward):
    product = hessian(lambda p: p["x"].sum(), {"x": torch.ones(2)}, forward=forward)(
        {"x": torch.ones(2)}
    )
    assert product["x"].tolist() == [0, 0]


@pytest.mark.parametrize("forward", [False, True])
def test_a_parameter_may_be_linear_beside_one_that_is_not(forward):
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    product = hessian(lambda p: (p["a"] ** 2).sum() + p["b"].sum(), params, forward=forward)(params)
    assert (product["a"].tolist(), product["b"].tolist()) == ([2, 2], [0, 0])


@pytest.mark.parametrize("forward", [False, True])
def test_half_precision_parameters_have_float32_vectors(forward):
    def loss(p):
        assert p["x"].dtype == torch.bfloat16
        return (p["x"] ** 4).sum()

    params = {"x": torch.ones(2, dtype=torch.bfloat16)}
    H = hessian(loss, params, forward=forward)
    for v in ({"x": torch.ones(2)}, params):  # half precision vectors are raised
        assert H(v)["x"].dtype == torch.float32
        assert H(v)["x"].tolist() == [12, 12]
    assert energy_share(params, [{"x": torch.ones(2)}]) == pytest.approx(1)


def test_the_scope_of_a_loss_covers_forward_and_every_backward():
    class Attention:
        depth = entries = 0

        @contextlib.contextmanager
        def scope(self, params):
            assert "x" in params
            self.entries += 1
            with sdpa_kernel(SDPBackend.MATH):
                yield

        def __call__(self, p):
            return F.scaled_dot_product_attention(p["x"], p["x"], p["x"]).square().sum()

    params = {"x": torch.linspace(-1, 1, 12).reshape(1, 1, 3, 4)}
    loss = Attention()
    H = hessian(loss, params)
    for _ in range(2):
        assert norm(H(params)) > 0
    assert loss.entries == 3
    with pytest.raises(RuntimeError, match="not implemented"):
        hessian(loss.__call__, params)(params)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p: torch.tensor(1.0), "must depend on the parameters"),
        (lambda p: torch.ones((), requires_grad=True), "must depend on the parameters"),
        (lambda p: p["x"], "must be a real scalar tensor, got torch.float32"),
        (lambda p: p["x"].sum().to(torch.cfloat), "must be a real scalar tensor"),
        (lambda p: (p["x"] > 0).sum(), "must be a real scalar tensor, got torch.int64"),
        (lambda p: 1.0, "got float"),
    ],
)
def test_a_loss_that_is_no_loss_is_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        hessian(loss, {"x": torch.ones(2)})({"x": torch.ones(2)})


def test_non_finite_losses_and_parameters_are_refused():
    with pytest.raises(FloatingPointError, match="the loss must be finite, got inf"):
        _ = hessian(lambda p: p["x"].sum() / 0, {"x": torch.ones(2)}).loss_value
    with pytest.raises(FloatingPointError, match=r"infinity in \['x'\]"):
        hessian(lambda p: p["x"].sum(), {"x": torch.tensor([float("nan")])})


@pytest.mark.parametrize("dtype", [torch.long, torch.cfloat])
def test_integer_and_complex_parameters_are_refused(dtype):
    with pytest.raises(ValueError, match="real floating point"):
        hessian(lambda p: p["x"].sum(), {"x": torch.ones(2, dtype=dtype)})


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


@pytest.mark.parametrize(
    "loss",
    [
        lambda p: Square.apply(p["x"]).sum(),
        lambda p: (p["x"] * Square.apply(3 * p["x"])).sum(),  # only some of its terms are lost
    ],
)
def test_a_once_differentiable_function_is_refused_instead_of_read_as_flat(loss):
    with pytest.raises(ValueError, match="once_differentiable"):
        hessian(loss, {"x": torch.ones(2)})({"x": torch.ones(2)})


def test_half_precision_networks_pass_the_symmetry_check(mlp):
    loss, params = mlp
    half = {n: p.bfloat16() for n, p in params.items()}

    def rounded(p):
        return loss({n: x.double() for n, x in p.items()})

    def coarse(p):  # every intermediate in bfloat16
        h = torch.tanh(torch.ones(20, 5, dtype=torch.bfloat16) @ p["first.weight"].T)
        return (h @ p["last.weight"].T).float().logsumexp(1).mean()

    for f in (rounded, coarse):
        found = top_eigenpairs(hessian(f, half), 1, tol=0.05)
        assert found.converged.all()
        assert found.asymmetry < hessian(f, half).accuracy
