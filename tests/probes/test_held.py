"""Losses whose gradient is not that of one function: their Hessian is that of the loss held.

The truth is torch's plain double backward of a float64 copy, dense and without the engine.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import eqtoolbox as eq
from eqtoolbox.linalg import FunctionOperator, hessian
from eqtoolbox.linalg.asymmetry import asymmetry
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.engine import _thrifty
from eqtoolbox.probes.operators import operator
from eqtoolbox.probes.proving import self_test
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.snapshot import NotApplicable
from tests.probes.test_engine import RawBackward, objective

CLASSES = 3


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(32, 6, generator=draw), torch.randint(0, CLASSES, (32,), generator=draw)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def cross_entropy(model: nn.Module, b: Any) -> Tensor:
    return F.cross_entropy(model(b[0]), b[1])


def simsiam(model: nn.Module, b: Any) -> Tensor:
    one, two = model(b[0]), model(b[0] + 0.3)
    return -F.cosine_similarity(torch.tanh(one), two.detach()).mean()


def td_zero(model: nn.Module, b: Any) -> Tensor:
    value = model(b[0]).gather(1, b[1][:, None])[:, 0]
    with torch.no_grad():
        target = 0.9 * model(b[0].flip(0)).max(1).values + b[0][:, 0]
    return F.smooth_l1_loss(value, target)


def actor_critic(model: nn.Module, b: Any) -> Tensor:
    out, reward = model(b[0]), b[0][:, 0]
    advantage = (reward - out[:, 2]).data
    policy = F.log_softmax(out[:, :2], 1)[:, 0]
    return (reward - out[:, 2]).square().mean() / 2 - (policy * advantage).mean()


def focal(model: nn.Module, b: Any) -> Tensor:
    """Detached weights that are functions of the loss: J is symmetric nevertheless."""
    each = F.cross_entropy(model(b[0]), b[1], reduction="none")
    return ((1 - (-each).exp()).detach().square() * each).mean()


def normalised(model: nn.Module, b: Any) -> Tensor:
    loss = cross_entropy(model, b)
    return loss / loss.detach()


class Spike(torch.autograd.Function):
    """A step with a surrogate gradient."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return g / (1 + 5 * v.abs()) ** 2


class Spiking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        v = out = torch.zeros((), dtype=x.dtype)
        for _ in range(4):
            v = 0.8 * v + self.a(x)
            spike = Spike.apply(v - 1)
            v, out = v - spike.detach(), out + self.b(spike)
        return out / 4


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Quantised(nn.Module):
    """Fake quantisation of weights, by a function or straight through a detached remainder."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(6, 8), nn.Linear(8, CLASSES), function

    def rounded(self, w: Tensor) -> Tensor:
        return Round.apply(w) if self.function else w + ((8 * w).round() / 8 - w).detach()

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(x, self.rounded(self.a.weight), self.a.bias))
        return F.linear(hidden, self.rounded(self.b.weight), self.b.bias)


class Reversed(torch.autograd.Function):
    """Domain-adversarial training: the identity, and minus the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Codes(nn.Module):
    """VQ-VAE whose codes are buffers that the forward itself moves."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.d = nn.Linear(6, 4), nn.Linear(4, 6)
        self.register_buffer("code", torch.randn(8, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.tanh(self.e(x))
        nearest = torch.cdist(z.detach(), self.code).argmin(1)
        q = self.code[nearest]
        with torch.no_grad():
            hot = F.one_hot(nearest, 8).to(z)
            self.code.mul_(0.5).add_(hot.T @ z, alpha=0.05)
        return self.d(z + (q - z).detach()), (z - q.detach()).square().mean()


def autoencoding(model: nn.Module, b: Any) -> Tensor:
    decoded, commitment = model(b[0])
    return (decoded - b[0]).square().mean() + commitment / 4


def critic(wrap: Any) -> nn.Module:
    return nn.Sequential(wrap(nn.Linear(6, 8)), nn.Softplus(), wrap(nn.Linear(8, 1)))


def two_forwards(model: nn.Module, b: Any) -> Tensor:
    """Each forward moves the vectors of the power iteration."""
    return F.softplus(-model(b[0])).mean() + F.softplus(model(1 - b[0])).mean()


def relu_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def maml_of_first_order(model: nn.Module, b: Any) -> Tensor:
    named = dict(model.named_parameters())
    inner = F.cross_entropy(torch.func.functional_call(model, named, (b[0][:16],)), b[1][:16])
    slopes = torch.autograd.grad(inner, [*named.values()])
    moved = {n: p - 0.4 * g for (n, p), g in zip(named.items(), slopes, strict=True)}
    return F.cross_entropy(torch.func.functional_call(model, moved, (b[0][16:],)), b[1][16:])


def adversarial(model: nn.Module, b: Any, backward: bool = False) -> Tensor:
    """Virtual adversarial training: noise is drawn, and turned to where it changes most."""
    out, rng = model(b[0]), torch.Generator().manual_seed(3)
    noise = F.normalize(torch.randn(b[0].shape, generator=rng).to(b[0]), dim=1).requires_grad_()
    target = F.softmax(out, 1).detach()
    apart = F.kl_div(F.log_softmax(model(b[0] + 0.1 * noise), 1), target, reduction="batchmean")
    if backward:
        apart.backward(inputs=[noise])
        slope = noise.grad
    else:
        (slope,) = torch.autograd.grad(apart, noise)
    moved = model(b[0] + F.normalize(slope, dim=1))
    far = F.kl_div(F.log_softmax(moved, 1), target, reduction="batchmean")
    return F.cross_entropy(out, b[1]) + far


HELD: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "SimSiam": (net, simsiam),
    "TD(0)": (net, td_zero),
    "actor-critic": (net, actor_critic),
    "detached weights": (net, focal),
    "divided by itself": (net, normalised),
    "spiking": (Spiking, cross_entropy),
    "quantised by a function": (lambda: Quantised(True), cross_entropy),
    "quantised straight through": (lambda: Quantised(False), cross_entropy),
    "reversed gradient": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Lambda(Reversed.apply), nn.Linear(8, 3)),
        cross_entropy,
    ),
    "VQ-VAE": (Codes, autoencoding),
    "MAML of first order": (net, maml_of_first_order),
    "MAML of first order behind kinks": (relu_net, maml_of_first_order),
    "virtual adversarial": (net, adversarial),
    "virtual adversarial behind kinks": (relu_net, adversarial),
    "virtual adversarial by backward": (relu_net, lambda m, b: adversarial(m, b, True)),
    "spectral norm": (lambda: critic(parametrizations.spectral_norm), two_forwards),
    "behind kinks": (
        lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, CLASSES)),
        simsiam,
    ),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return make()


def flat_hessian(model: nn.Module, loss_fn: Any) -> Tensor:
    """Of plain double backward in float64, made symmetric."""
    model, (x, y) = copy.deepcopy(model).double(), batch()
    params = [*model.parameters()]
    rows = torch.autograd.grad(loss_fn(model, (x.double(), y)), params, create_graph=True)
    entries = torch.cat([r.reshape(-1) for r in rows])
    columns = [
        torch.autograd.grad(e, params, retain_graph=True, materialize_grads=True) for e in entries
    ]
    dense = torch.stack([torch.cat([c.reshape(-1) for c in col]) for col in columns])
    return (dense + dense.T) / 2


def measured(model: nn.Module, loss_fn: Any, **options: Any) -> dict[str, Record]:
    """Records of one step by name."""
    sink, optimizer = MemorySink(), torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Curvature(k=1, tol=1e-5)
    with eq.attach(
        model, optimizer, probes=[probe], schedule=1, budget=None, sinks=[sink], on_error="raise",
        **options,
    ) as monitor:  # fmt: skip
        watched = monitor.loss(loss_fn)
        watched(model, batch()).backward()
        optimizer.step()
    return {r.name: r for r in sink.records}


@pytest.mark.parametrize("name", HELD)
def test_the_hessian_is_exact_with_the_detached_part_held(name: str) -> None:
    make, loss_fn = HELD[name]
    model = made(make)
    truth = torch.linalg.eigvalsh(flat_hessian(model, loss_fn))
    rows = measured(model, loss_fn)
    top, gap = rows["curvature/sharpness"], rows["curvature/self_test/jacobian_asymmetry"]
    assert (top.status, top.hessian) == ("ok", "held"), rows["curvature/self_test/repeat"].note
    assert top.value == pytest.approx(float(truth[-1]), rel=1e-4)
    assert rows["curvature/smallest"].value == pytest.approx(float(truth[0]), rel=1e-3, abs=1e-3)
    assert rows["curvature/asymmetry"].value < 1e-4
    symmetric = name in ("detached weights", "divided by itself")
    assert (gap.value < 1e-5) if symmetric else (gap.value > 1e-3), gap


def test_low_memory_holds_the_same_part() -> None:
    loss = objective(made(net), loss_fn=simsiam, batch=batch())
    with loss.isolated():
        params = loss.parameters()
        test = _thrifty(loss, params, self_test(loss, params))
        assert test.held and test.mode in ("split", "rebuilt")  # differences hold nothing
        v = {n: torch.ones_like(p) for n, p in params.items()}
        got, want = operator(loss, params, test)(v), hessian(loss, params)(v)
    for n in v:
        torch.testing.assert_close(got[n], want[n], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kinked", [False, True], ids=["smooth", "behind kinks"])
def test_a_wrong_second_derivative_is_not_called_held(kinked: bool) -> None:
    """Must fail: symmetric exact products which are wrong, of the gradient of one function."""
    bend = nn.ReLU() if kinked else nn.Tanh()
    raw = Lambda(RawBackward.apply)
    model = made(
        lambda: nn.Sequential(nn.Linear(6, 8), bend, nn.Linear(8, 8), raw, nn.Linear(8, 3))
    )
    twin = copy.deepcopy(model)
    twin[3] = Lambda(lambda x: (3 * x).sin())
    right, wrong = (
        float(torch.linalg.eigvalsh(flat_hessian(m, cross_entropy))[-1]) for m in (twin, model)
    )
    rows = measured(model, cross_entropy)
    top = rows["curvature/sharpness"]
    assert abs(wrong - right) > 0.02 * right
    assert top.status in ("ok", "not_converged")  # as rounding of differences has it
    assert top.hessian == "differenced"
    assert top.value == pytest.approx(right, rel=2e-3)
    assert "look at the backward of RawBackward" in rows["curvature/self_test/repeat"].note
    assert rows["curvature/self_test/jacobian_asymmetry"].value < 1e-5


def test_a_plain_loss_is_neither_held_nor_differenced() -> None:
    """Must fail: nothing is detached."""
    rows = measured(made(net), cross_entropy)
    assert rows["curvature/sharpness"].hessian is None
    assert "curvature/self_test/jacobian_asymmetry" not in rows


class NoBackwardTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


def test_what_is_neither_exact_nor_the_gradient_of_one_function_is_refused() -> None:
    body = nn.Sequential(nn.Linear(6, 8), Lambda(NoBackwardTwice.apply), nn.Linear(8, CLASSES))
    loss = objective(made(lambda: body), loss_fn=simsiam, batch=batch())
    with loss.isolated(), pytest.raises(NotApplicable, match="not the gradient of one function"):
        self_test(loss, loss.parameters())


@pytest.mark.parametrize("skew", [0.0, 0.01, 1.0])
def test_asymmetry_is_that_of_the_matrix(skew: float) -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(40, 40, generator=draw, dtype=torch.float64)
    matrix = (a + a.T) / 2 + skew * (a - a.T) / 2
    map_ = FunctionOperator(lambda v: {"x": matrix @ v["x"]}, {"x": matrix[0]})
    truth = float((matrix - matrix.T).norm() / matrix.norm())
    found = [asymmetry(map_, torch.Generator().manual_seed(seed)) ** 2 for seed in range(100)]
    mean = math.sqrt(sum(found) / len(found))
    assert mean == pytest.approx(truth, rel=0.1, abs=1e-12)


def absolute(model: nn.Module, b: Any) -> Tensor:
    return cross_entropy(model, b) + 0.01 * sum(p.abs().sum() for p in model.parameters())


def test_a_kink_where_the_parameters_are_accuses_nothing() -> None:
    """|w| at w = 0: both sides of a difference jump alike, and no second difference shows it."""
    model = made(net)
    with torch.no_grad():
        model[0].bias.zero_()
        model[2].bias.zero_()
    truth = float(torch.linalg.eigvalsh(flat_hessian(model, absolute))[-1])
    top = measured(model, absolute)["curvature/sharpness"]
    assert top.hessian is None
    assert top.value == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_relu_network_keeps_its_exact_products(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES)
    )
    rows = measured(model, cross_entropy)
    assert (rows["curvature/sharpness"].status, rows["curvature/sharpness"].hessian) == ("ok", None)
    assert rows["curvature/self_test/repeat"].note.startswith("exact: symmetric")


def test_a_part_that_may_matter_is_called_held_where_nothing_can_be_compared() -> None:
    """Behind kinks, in a loss of another value in float64; must fail without a detached part."""

    def narrow(model: nn.Module, b: Any, cut: bool) -> Tensor:
        out = model(b[0])
        odd = 1.0 if out.dtype == torch.float32 else 2.0  # no float64 to compare with
        weight = out.softmax(1).amax(1)
        return odd * ((weight.detach() if cut else weight) * F.cross_entropy(out, b[1])).mean()

    for cut, said in ((True, "held"), (False, None)):
        rows = measured(made(relu_net), lambda m, b, cut=cut: narrow(m, b, cut))
        assert "not comparable" in rows["curvature/self_test/repeat"].note
        assert rows["curvature/sharpness"].hessian == said


def test_negatives_sampled_down_the_gradient_of_an_energy_are_held() -> None:
    """An energy-based loss: where its negatives end depends on the weights, and is cut off."""

    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        x = torch.randn(8, 2).to(batch)
        for _ in range(5):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(model(x).sum(), x)
            x = x - 0.1 * slope
        real, made = model(batch), model(x.detach())
        return real.mean() - made.mean() + 0.1 * (real.square() + made.square()).mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 1))
    batch, sink, state = torch.randn(8, 2) + 1, MemorySink(), torch.get_rng_state()
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(loss_fn(model, batch), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in slopes])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True) for g in flat]
    dense = torch.stack([torch.cat([x.flatten() for x in row]) for row in rows]).double()
    torch.set_rng_state(state)
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    with eq.attach(
        model, optimizer, schedule=1, budget=None, probes={"curvature": {"k": 1}}, sinks=[sink]
    ) as monitor:
        monitor.loss(loss_fn)(model, batch).backward()
        optimizer.step()
    (row,) = [r for r in sink.records if r.name == "curvature/sharpness"]
    top = torch.linalg.eigvalsh((dense + dense.T) / 2)[-1].item()
    assert row.value == pytest.approx(top, rel=1e-4)
    assert row.hessian == "held"
