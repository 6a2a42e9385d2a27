"""The epsilon of a normalisation predicts, exactly, what a scale symmetry lacks; nothing else."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import eqtoolbox as eq
from eqtoolbox.weights.epsilon import (
    Epsilons,
    Noted,
    at_factors,
    log_slopes,
    moved_along,
    observed,
    prediction,
)
from eqtoolbox.weights.search.explanation import Trial, explained
from eqtoolbox.weights.search.point import Point

Params = dict[str, Tensor]
EPS = 1e-2

NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch 1d": (lambda: nn.BatchNorm1d(4), (7, 4)),
    "batch 2d": (lambda: nn.BatchNorm2d(4), (5, 4, 3, 3)),
    "layer": (lambda: nn.LayerNorm((3, 3)), (5, 4, 3, 3)),
    "group": (lambda: nn.GroupNorm(2, 4), (5, 4, 3, 3)),
    "instance": (lambda: nn.InstanceNorm2d(4, affine=True), (5, 4, 3, 3)),
    "rms": (lambda: nn.RMSNorm(3), (5, 4, 3, 3)),
    "rms eps": (lambda: nn.RMSNorm((3, 3), eps=EPS), (5, 4, 3, 3)),
    "batch, evaluated": (lambda: nn.BatchNorm2d(4).eval(), (5, 4, 3, 3)),
}


@pytest.mark.parametrize("kind", NORMS)
def test_formulas_with_their_own_epsilon_are_the_layers(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = NORMS[kind]
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    for p in layer.parameters():
        nn.init.normal_(p)
    with torch.no_grad(), Epsilons(lambda _, amount, __: torch.ones_like(amount)) as seen:
        made = layer(x)
        with Epsilons(lambda _, amount, eps: torch.full_like(amount, 1 / eps)):
            other = layer(x)
    assert torch.allclose(made, layer(x), atol=1e-13)
    evaluated = kind.endswith("evaluated")
    assert len(seen.amounts) == (0 if evaluated else 1)
    assert evaluated or not torch.allclose(other, made, atol=1e-3)


@pytest.mark.parametrize("kind", NORMS)
def test_what_epsilons_are_added_to_is_noted_beside_kernels_that_nobody_changes(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = NORMS[kind]
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    for p in layer.parameters():
        nn.init.normal_(p)
    with Noted() as noted:
        made = layer(x)
    assert noted.known
    assert torch.equal(made, layer(x))
    seen = observed(lambda p: functional_call(layer, p, (x,)).sum(), dict(layer.named_parameters()))
    assert len(noted.amounts) == len(seen)
    assert all(torch.allclose(a, b, rtol=1e-14) for a, b in zip(noted.amounts, seen, strict=True))
    with Noted() as narrow:
        layer.float()(x.float())
    assert narrow.known == (not seen), "of float32 the amounts are too coarse"


@pytest.mark.parametrize("rooted", [
    lambda x: x.square().mean(-1).add(1e-6).rsqrt(),
    lambda x: x / (x.norm(dim=-1, keepdim=True) + 0.05),
    lambda x: x.square().mean(-1).add_(1e-4).sqrt_(),
    lambda x: x.square().mean(-1).add_(0.05).rsqrt_(),
    lambda x: (x.square().mean(-1) + 0.05) ** -0.5,
    lambda x: x.square() + 0.05,
])  # fmt: skip
def test_written_by_hand_they_are_noted_too(rooted: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with Noted() as noted:
        made = rooted(x)
    assert torch.equal(made, rooted(x))
    seen = observed(lambda p: rooted(p["x"]).sum(), {"x": x})
    assert noted.known and len(noted.amounts) == len(seen)
    assert all(torch.allclose(a, b, rtol=1e-14) for a, b in zip(noted.amounts, seen, strict=True))


class Deep(nn.Module):
    """Two normalisations in a row, a hand-written third, and what may spoil the scale."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3)
        self.first, self.second = nn.BatchNorm2d(3, eps=EPS), nn.BatchNorm2d(3, eps=EPS)
        self.c, self.head = nn.Linear(12, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.kind == "clamp":
            x = x.clamp(-0.8, 0.8)
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(self.b(x))).flatten(1)
        x = self.c(x)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3)
        return self.head(torch.tanh(x))


NAMES = {"a.weight": 0, "a.bias": 0, "b.weight": 1, "b.bias": 1, "c.weight": 2}


def moved(params: Params, c: Tensor) -> Params:
    """Channels of both convolutions and the whole third matrix, each times e^c."""

    def factor(name: str, p: Tensor) -> Tensor:
        part = c[3 * NAMES[name] : 3 * NAMES[name] + 3].exp()
        if NAMES[name] == 2:
            return part[:1]
        return part.reshape([3, *[1] * (p.dim() - 1)])

    return {n: p * factor(n, p) if n in NAMES else p for n, p in params.items()}


def case(kind: str = "plain", dtype: torch.dtype = torch.float64) -> tuple[Callable, Params]:
    torch.manual_seed(0)
    model = Deep(kind).to(dtype)
    x, y = torch.randn(8, 2, 6, 6, dtype=torch.float64).to(dtype), torch.arange(8) % 3
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def loss(params: Params) -> Tensor:
        state = {**params, **{n: b.clone() for n, b in buffers.items()}}
        return F.cross_entropy(functional_call(model, state, (x,)), y)

    return loss, {n: p.detach().clone() for n, p in model.named_parameters()}


def residuals(kind: str) -> dict[str, float]:
    """What each order of the law lacks, and how much of it epsilon leaves unexplained."""
    loss, params = case(kind)
    c = 0.3 * torch.randn(9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    base = observed(loss, params)
    value = loss(params)
    along, factors = moved_along(loss, moved(params, c), base)
    rates = [f.log() for f in factors]
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    _, K = torch.func.jvp(lambda s: moved(params, s * c), (zero,), (one,))
    g, HK = torch.func.jvp(torch.func.grad(loss), (params,), (K,))
    A = {
        n: t.log() for n, t in moved({n: torch.ones_like(p) for n, p in params.items()}, c).items()
    }
    p = lambda params: prediction(
        torch.func.grad(lambda f: at_factors(loss, params, f))([torch.ones_like(b) for b in base]),
        rates,
    )
    slope = torch.func.grad(p)(params)
    law = {n: HK[n] + A[n] * g[n] for n in params}  # (DK)^T g = A g, A diagonal
    size = lambda v: math.sqrt(sum(float(x.square().sum()) for x in v.values()))
    gK = sum(float((g[n] * K[n]).sum()) for n in g)
    instead = float(at_factors(loss, params, [1 / f for f in factors]))
    there = float(loss(moved(params, c)))
    by_slopes = float(prediction(log_slopes(loss, params)[1], rates))
    assert by_slopes == pytest.approx(float(p(params)), rel=1e-10)
    return {
        "0": abs(there - float(value)),
        "0 left": abs(float(along) - float(value)) + abs(there - instead),
        "1": abs(gK) / (size(g) * size(K)),
        "1 left": abs(gK - by_slopes) / (size(g) * size(K)),
        "2": size(law) / (size(HK) + size(g)),
        "2 left": size({n: law[n] - slope[n] for n in law}) / (size(HK) + size(g)),
    }


def test_epsilon_predicts_what_every_order_of_the_law_lacks() -> None:
    found = residuals("plain")
    for order in "012":
        assert found[order] > 1e-4
        assert found[f"{order} left"] < 1e-12, order


def test_a_clamp_before_the_norm_is_not_explained_by_epsilon() -> None:
    found = residuals("clamp")
    for order in "012":
        assert found[f"{order} left"] > 1e-2 * found[order], order


class Small(nn.Module):
    def __init__(self, norm: str) -> None:
        super().__init__()
        self.a, self.h, self.norm = nn.Linear(6, 8, bias=False), nn.Linear(8, 3), norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.norm == "layer":
            x = F.layer_norm(x, (8,), eps=EPS)
        elif self.norm == "by hand":
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-4)
        elif self.norm == "deviation":
            x = x / (x.std(-1, keepdim=True) + 1e-4)
        return self.h(torch.tanh(x))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)


@pytest.mark.parametrize("norm", ["layer", "by hand", "deviation"])
def test_discovery_says_what_epsilon_predicts(norm: str) -> None:
    torch.manual_seed(0)
    found = eq.weights.discover(Small(norm), data())
    scale = next(s for s in found if s.family == "scale")
    assert scale.status == "approximate"
    assert scale.epsilon == pytest.approx(scale.residual, rel=1e-5)
    assert f"epsilon predicts {scale.epsilon:.1e}" in str(found)
    exact = [s for s in found if s.status == "verified"]
    assert exact and all(math.isnan(s.epsilon) for s in exact)


@pytest.mark.parametrize("order_0_alone", [False, True])
def test_an_approximate_symmetry_that_epsilon_does_not_explain_is_broken(
    order_0_alone: bool,
) -> None:
    torch.manual_seed(0)
    model = Small("layer").double()
    x, y = data()
    scale = next(s for s in eq.weights.discover(model, (x, y)) if s.family == "scale")
    params = Point(dict(model.named_parameters()), torch.float64)
    twin = copy.deepcopy(model)

    def judge(penalty: float) -> eq.weights.ParameterSymmetry:
        def loss(p: Params) -> Tensor:
            fit = F.cross_entropy(functional_call(twin, p, (x.double(),)), y)
            return fit + penalty * p["a.weight"].square().sum()

        leaves = {n: p.detach().requires_grad_() for n, p in params.items()}
        value = loss(leaves)
        (g,) = torch.autograd.grad(value, leaves["a.weight"])
        c = torch.tensor([0.3], dtype=torch.float64)
        K = 0.3 * params["a.weight"]
        order_1 = () if order_0_alone else (float((g * K).sum()), float(g.norm() * K.norm()))
        trial = Trial(replace(scale, epsilon=math.nan), c, *order_1)
        return explained(loss, params, value.detach(), [trial])[0]

    assert judge(0.0).status == "approximate"
    assert judge(1e-6).status == "broken"


def test_epsilon_explains_why_a_normalised_network_is_only_nearly_homogeneous() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, eps=EPS), nn.ReLU(),
        nn.Linear(8, 3, bias=False),
    )  # fmt: skip
    whole = next(s for s in eq.weights.discover(model, data()) if s.family == "homogeneity")
    assert whole.status == "approximate"
    assert whole.epsilon == pytest.approx(whole.residual, rel=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_normalisations_are_seen(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8, eps=EPS))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone().requires_grad_() if reentrant else x
            return self.head(torch.tanh(checkpoint(self.body, x, use_reentrant=reentrant)))

    torch.manual_seed(0)
    scale = next(s for s in eq.weights.discover(Checkpointed(), data()) if s.family == "scale")
    assert scale.epsilon == pytest.approx(scale.residual, rel=1e-5)


def test_an_amount_at_zero_has_no_rate() -> None:
    """A channel without variance is all epsilon: its scale changes nothing."""
    loss = lambda p: F.batch_norm(p["w"] * torch.ones(4, 1), None, None, training=True).sum()
    params = {"w": torch.tensor([2.0])}
    base = observed(loss, params)
    _, factors = moved_along(loss, {"w": torch.tensor([5.0])}, base)
    assert factors[0].tolist() == [[1.0]]


def test_another_course_where_parameters_are_moved_is_refused() -> None:
    def loss(p: Params) -> Tensor:
        x = F.rms_norm(p["w"], (3,))
        return (F.rms_norm(x, (3,)) if float(p["w"].sum()) > 5 else x).sum()

    base = observed(loss, {"w": torch.ones(3)})
    with pytest.raises(LookupError, match="takes another course"):
        moved_along(loss, {"w": 3 * torch.ones(3)}, base)
