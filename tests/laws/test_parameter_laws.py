"""The laws of THEORY in parameter space, over every family, against dense float64 Hessians."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from eqtoolbox.weights.discovery import find_symmetries
from eqtoolbox.weights.parameter import ContinuousSymmetry, ParameterSymmetry
from eqtoolbox.weights.search.verification import residuals, verified

Params = dict[str, Tensor]
Loss = Callable[[Params], Tensor]


class ConvNet(nn.Module):
    """Convolutions with and without batch normalisation, pooling, flatten, two linear layers."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, eps=eps)
        self.conv2 = nn.Conv2d(3, 4, 3, padding=1)
        self.act = activation()
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(16, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.conv1(x))))
        x = self.pool(self.act(self.conv2(x))).flatten(1)
        return self.head(self.act(self.hidden(x)))


def problem(model: nn.Module, shape: tuple[int, ...], classes: int = 3) -> tuple[Loss, Params]:
    generator = torch.Generator().manual_seed(5)
    model = model.double()
    x = torch.randn(12, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(0, classes, (12,), generator=generator)
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def loss(params: Params) -> Tensor:
        state = {**params, **{n: b.clone() for n, b in buffers.items()}}
        return nn.functional.cross_entropy(functional_call(model, state, (x,)), y)

    return loss, {n: p.detach().clone() for n, p in model.named_parameters()}


def conv_problem(**options: object) -> tuple[Loss, Params]:
    torch.manual_seed(2)
    return problem(ConvNet(**options), (1, 8, 8))  # type: ignore[arg-type]


def by_family(loss: Loss, params: Params) -> dict[str, list[ParameterSymmetry]]:
    found: dict[str, list[ParameterSymmetry]] = {}
    for symmetry in find_symmetries(loss, params):
        found.setdefault(symmetry.family, []).append(symmetry)
    return found


def flat(tensors: Params, like: Params) -> Tensor:
    return torch.cat([tensors.get(n, torch.zeros_like(p)).reshape(-1) for n, p in like.items()])


def dense(loss: Loss, params: Params) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian as dense float64 arrays, by torch.func, not by the code under test."""
    names, shapes = list(params), [p.shape for p in params.values()]

    def of_vector(v: Tensor) -> Tensor:
        parts = v.split([s.numel() for s in shapes])
        return loss({n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)})

    v = flat(params, params)
    return torch.func.grad(of_vector)(v), torch.autograd.functional.hessian(of_vector, v)


def test_every_family_is_found_in_a_convolutional_network() -> None:
    found = by_family(*conv_problem())
    names = {f: [s.name for s in members] for f, members in found.items()}
    assert names == {
        "gain_rescale": ["norm-conv2"],
        "permutation": ["conv1-conv2", "conv2-hidden", "hidden-head"],
        "rescale": ["conv2-hidden", "hidden-head"],
        "scale": ["conv1"],
        "sign_flip": ["conv1-norm"],
        "translation": ["conv1", "head"],
    }
    assert [s.dimension for s in found["rescale"]] == [4, 5]
    assert found["scale"][0].dimension == 3
    assert [s.dimension for s in found["translation"]] == [3, 6]
    assert all(s.status == "verified" for f in ("rescale", "translation") for s in found[f])


def test_scale_is_approximate_by_the_epsilon_of_the_normalisation() -> None:
    with_eps = by_family(*conv_problem(eps=1e-5))["scale"][0]
    without = by_family(*conv_problem(eps=1e-30))["scale"][0]
    assert with_eps.status == "approximate"
    assert 1e-8 < with_eps.residual < 1e-2
    assert without.status == "verified"


@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh, nn.SiLU, nn.Sigmoid])
def test_smooth_activations_have_no_rescale_symmetry(activation: type[nn.Module]) -> None:
    assert "rescale" not in by_family(*conv_problem(activation=activation))


class Twins(nn.Module):
    """Networks that look like a rescale pair and are not one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if self.kind == "extra consumer":
            return self.c(torch.relu(self.b(h))) + torch.tanh(h).sum(-1, keepdim=True)
        if self.kind == "clamp":
            return self.c(torch.clamp(h, max=0.3))
        if self.kind == "shared":
            return self.c(torch.relu(self.b(torch.relu(self.b(x)))))
        if self.kind == "added constant":
            return self.c(h + 1)
        if self.kind == "softmax head shared":
            y = self.c(h)
            return y - 0.1 * y.square()
        return self.c(h)


@pytest.mark.parametrize("kind", ["extra consumer", "clamp", "shared", "added constant"])
def test_a_broken_twin_is_never_verified(kind: str) -> None:
    torch.manual_seed(0)
    found = by_family(*problem(Twins(kind), (6,)))
    moved = {n for s in found.get("rescale", []) if s.status == "verified" for n in s.names}
    assert "a.weight" not in moved
    assert kind != "shared" or "b.weight" not in moved


def test_a_false_proposal_fails_verification() -> None:
    loss, params = conv_problem()
    proposal = by_family(loss, params)["rescale"][1]
    wrong = lambda p: loss(p) + p["hidden.weight"].square().sum()
    broken = verified(proposal, wrong, params, torch.Generator().manual_seed(0))
    assert broken.status == "broken"
    assert max(residuals(proposal, loss, params, torch.Generator().manual_seed(0))) < 1e-13
    assert max(residuals(proposal, wrong, params, torch.Generator().manual_seed(0))) > 1e-2


def test_translation_needs_a_softmax() -> None:
    torch.manual_seed(0)
    found = by_family(*problem(Twins("softmax head shared"), (6,)))
    assert "translation" not in found
    assert "translation" in by_family(*problem(Twins("plain"), (6,)))


FAMILIES = ["rescale", "scale", "translation"]


@pytest.fixture(scope="module")
def exact() -> tuple[Loss, Params, dict[str, list[ParameterSymmetry]], Tensor, Tensor]:
    loss, params = conv_problem(eps=1e-30)
    return loss, params, by_family(loss, params), *dense(loss, params)


@pytest.mark.parametrize("family", FAMILIES)
def test_finite_transformations_form_a_group_and_keep_the_loss(family: str, exact: tuple) -> None:
    loss, params, found, _, _ = exact
    for symmetry in found[family]:
        c = torch.randn(symmetry.dimension, dtype=torch.float64)
        once = {**params, **symmetry.transform(params, c)}
        assert loss(once) == pytest.approx(loss(params).item(), rel=1e-12)
        back = symmetry.transform(once, -c)
        assert all(torch.allclose(back[n], params[n], atol=1e-13) for n in back)


@pytest.mark.parametrize("family", FAMILIES)
def test_tangent_is_the_derivative_of_the_transformation(family: str, exact: tuple) -> None:
    _, params, found, _, _ = exact
    for symmetry in found[family]:
        c = torch.randn(symmetry.dimension, dtype=torch.float64)
        zero = torch.zeros((), dtype=torch.float64)
        _, slope = torch.func.jvp(
            lambda s, sym=symmetry, c=c: sym.transform(params, s * c), (zero,), (zero + 1,)
        )
        tangent = symmetry.tangent(params, c)
        assert all(torch.allclose(slope[n], tangent[n], atol=1e-14) for n in tangent)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_and_second_order_laws_hold_to_rounding(family: str, exact: tuple) -> None:
    _, params, found, g, hessian = exact
    for symmetry in found[family]:
        c = torch.randn(symmetry.dimension, dtype=torch.float64)
        k = flat(symmetry.tangent(params, c), params)
        assert abs(g @ k) < 1e-13 * g.norm() * k.norm()
        pieces = dict(zip(params, g.split([p.numel() for p in params.values()]), strict=True))
        gradient = {n: piece.view(params[n].shape) for n, piece in pieces.items()}
        pulled = flat(symmetry.pullback(params, c, gradient), params)
        product = hessian @ k
        assert (product + pulled).norm() < 1e-12 * (hessian.norm() * k.norm())
        if family != "translation":
            assert pulled.norm() > 1e-3 * g.norm(), "the law is not empty"
            assert product @ k == pytest.approx(float(-pulled @ k), rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_generators_are_gradients_of_the_charges(family: str, exact: tuple) -> None:
    _, params, found, _, _ = exact
    direction = {n: torch.randn_like(p) for n, p in params.items()}
    for symmetry in found[family]:
        _, slope = torch.func.jvp(symmetry.charge, (params,), (direction,))
        assert torch.allclose(slope, symmetry.pairing(params, direction), atol=1e-13)
        for i in (0, symmetry.dimension - 1):
            unit = torch.zeros(symmetry.dimension, dtype=torch.float64)
            unit[i] = 1
            k = flat(symmetry.tangent(params, unit), params)
            inner = float(k @ flat(direction, params))
            assert inner == pytest.approx(float(symmetry.pairing(params, direction)[i]), rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_charge_changes_by_pairing_and_finite_step_exactly(family: str, exact: tuple) -> None:
    _, params, found, _, _ = exact
    direction = {n: torch.randn_like(p) for n, p in params.items()}
    moved = {n: p + direction[n] for n, p in params.items()}
    for symmetry in found[family]:
        change = symmetry.charge(moved) - symmetry.charge(params)
        terms = symmetry.pairing(params, direction) + symmetry.finite_step(direction)
        assert torch.allclose(change, terms, atol=1e-11)
        assert bool((symmetry.charge(params).abs() <= symmetry.charge_scale(params) + 1e-12).all())


def test_the_law_fails_for_a_network_without_the_symmetry() -> None:
    """Negative control: the ReLU network's generator on the GELU network of the same shapes."""
    relu = by_family(*conv_problem())["rescale"][1]
    loss, params = conv_problem(activation=nn.GELU)
    g, hessian = dense(loss, params)
    c = torch.randn(relu.dimension, dtype=torch.float64)
    k = flat(relu.tangent(params, c), params)
    assert abs(g @ k) > 1e-4 * g.norm() * k.norm()
    assert (hessian @ k).norm() > 1e-6


def test_charges_are_conserved_by_gradient_flow_and_drift_at_second_order() -> None:
    """Halving the step and doubling their number halves the drift of one unit of time."""
    loss, params = conv_problem(eps=1e-30)
    members = [s for members in by_family(loss, params).values() for s in members]
    found = [s for s in members if isinstance(s, ContinuousSymmetry)]

    def drift(lr: float, steps: int) -> float:
        theta = {n: p.clone().requires_grad_() for n, p in params.items()}
        for _ in range(steps):
            grads = torch.autograd.grad(loss(theta), list(theta.values()))
            theta = {
                n: (p - lr * g).detach().requires_grad_()
                for (n, p), g in zip(theta.items(), grads, strict=True)
            }
        with torch.no_grad():
            return sum((s.charge(theta) - s.charge(params)).norm().item() for s in found)

    coarse, fine = drift(0.02, 10), drift(0.01, 20)
    assert coarse / fine == pytest.approx(2.0, rel=0.1)
