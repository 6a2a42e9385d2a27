"""Lie derivatives, structured batches and discovered algebras against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.symmetry import Equivariance, equivariance_error
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.boosts import Boost
from eqtoolbox.symmetry.actions.fields import (
    pseudo_scalar_field,
    scalar_field,
    vector_field,
)
from eqtoolbox.symmetry.actions.linear import axial_vectors, positions, vectors
from eqtoolbox.symmetry.actions.permuting import Permute, Relabel, Roll
from eqtoolbox.symmetry.actions.resampling import FourierShift, Shift
from eqtoolbox.symmetry.actions.scaling import Degree, Parity
from eqtoolbox.symmetry.algebra import closure, discover_data
from eqtoolbox.symmetry.derivative import Derivative
from eqtoolbox.symmetry.each import Each, batch_of_one, one_sample
from eqtoolbox.symmetry.groups.finite import Sign, Symmetric
from eqtoolbox.symmetry.groups.group import Cyclic, Dihedral
from eqtoolbox.symmetry.groups.matrices import E3, O3, SE3, SO2, SO3, Lorentz, Orthogonal
from eqtoolbox.symmetry.groups.unbounded import Scalings, Translations
from eqtoolbox.symmetry.lie import lie_derivative


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


WEIGHT = normal(3, 3)


def cubes(x: Tensor) -> Tensor:
    return x * x.square().sum(-1, keepdim=True)


def wave(x: Tensor) -> Tensor:
    """Periodic differences along both axes: d/dy, d/dx."""
    return torch.stack([(torch.roll(x, -1, d) - torch.roll(x, 1, d)) / 2 for d in (-2, -1)])


def gradient(phi: Tensor) -> Tensor:
    down, right = wave(phi[:, 0])
    return torch.stack([right, down], 1)


def curl(u: Tensor) -> Tensor:
    (_, down_right), (right_down, _) = wave(u[:, 1]), wave(u[:, 0])
    return (down_right - right_down)[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("group", "act", "out"),
    [
        (SO3(), vectors, vectors), (O3(), vectors, vectors),
        (Scalings(), Degree(1), Degree(3)), (Sign(), Parity(), Parity()),
    ],
)  # fmt: skip
def test_x_times_its_square_is_a_vector_of_degree_three_and_odd(group, act, out, dtype) -> None:
    x = normal(16, 3, dtype=dtype)
    assert equivariance_error(cubes, x, Equivariance(group, act, out)).verdict == "holds"
    assert equivariance_error(cubes, x, Equivariance(group, act, trivial)).verdict == "violated"
    if group.generators():
        right = lie_derivative(cubes, x, Equivariance(group, act, out))
        wrong = lie_derivative(cubes, x, Equivariance(group, act, trivial))
        assert {r.verdict for r in right} == {"holds"}
        assert {r.verdict for r in wrong} == {"violated"}


def test_the_lie_derivative_of_a_linear_map_is_its_commutator() -> None:
    weight, x = normal(3, 3), normal(400, 3, seed=1)
    results = lie_derivative(lambda x: x @ weight.T, x, Equivariance(SO3(), vectors, vectors))
    for a, found in zip(SO3().generators(), results, strict=True):
        closed = (x @ (weight @ a - a @ weight).T).square().sum(1).mean().sqrt()
        assert found.rate == pytest.approx(float(closed), rel=1e-12)
        assert found.mode == "forward"
        assert 0 < found.relative <= 1


def test_small_rotations_approach_the_lie_derivative() -> None:
    net = lambda x: torch.sin(x @ normal(2, 4)) @ normal(4, 1, seed=2)
    x, group = normal(64, 2, seed=1), SO2()
    (found,) = lie_derivative(net, x, Equivariance(group, vectors, trivial))
    for step in (1e-3, 1e-4):
        g = group.element(group.generators()[0], step)
        finite = (net(vectors(g, x)) - net(x)).square().sum(1).mean().sqrt() / step
        assert float(finite) == pytest.approx(found.rate, rel=3 * step)


@pytest.mark.parametrize("group", [SO2(), SO3(), Orthogonal(5)], ids=lambda g: g.name)
@pytest.mark.parametrize("batch", [16, 64])
def test_all_generators_share_one_evaluation_of_the_function(group, batch: int) -> None:
    """The function's own rows; each direction adds a derivative, no evaluation."""
    rows: list[int] = []

    def model(x: Tensor) -> Tensor:
        rows.append(len(x))
        return x.tanh()

    x = normal(batch, group.size)
    count = len(lie_derivative(model, x, Equivariance(group, vectors, trivial)))
    assert rows.count(batch) == math.ceil(count / 8)
    assert sum(rows) <= (math.ceil(count / 8) + 0.5) * batch


def test_layers_written_out_have_the_derivatives_of_torch() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Linear(8, 2)
    ).double()
    x, v = normal(6, 3), [normal(6, 3, seed=i) for i in range(3)]
    value, changes = Derivative(model)(x, v)
    assert torch.allclose(value, model(x), rtol=1e-13)
    for direction, change in zip(v, changes, strict=True):
        _, exact = torch.autograd.functional.jvp(model, x, direction)  # twice backward
        assert torch.allclose(change, exact, rtol=1e-12, atol=1e-14)


def test_functions_that_cannot_be_vectorised_are_derived_one_by_one() -> None:
    def branching(x: Tensor) -> Tensor:
        return x * x if float(x.sum()) > 0 else x.sin()

    x, v = normal(6, 3).abs(), [normal(6, 3, seed=i) for i in range(2)]
    for direction, change in zip(v, Derivative(branching)(x, v)[1], strict=True):
        assert torch.allclose(change, 2 * x * direction, rtol=1e-14)


def test_direction_ratio_tells_an_invariant_head_from_a_careless_one() -> None:
    claim = Equivariance(SO3(), vectors, trivial)
    careful = lie_derivative(lambda x: x.square().sum(-1, keepdim=True), normal(256, 3), claim)
    careless = lie_derivative(lambda x: (x @ normal(3, 5, seed=3)).tanh(), normal(256, 3), claim)
    assert max(r.direction_ratio for r in careful) < 1e-14
    assert all(0.3 < r.direction_ratio < 3 for r in careless)
    assert all(r.relative == pytest.approx(1.0) for r in careless)  # always, with Y = 0


def test_double_backward_stands_in_where_forward_mode_is_missing() -> None:
    claim, x = Equivariance(SO3(), vectors, trivial), normal(8, 3)
    scale = torch.tensor([1.0, 2.0, 3.0]).double()
    plain = lie_derivative(lambda x: x * x * scale, x, claim)
    grid = normal(8, 3, 3, 2).clamp(-1, 1)
    sampled = lambda x: F.grid_sample(
        x[:, None, None].expand(8, 1, 3, 3), grid, align_corners=False
    )
    twice = lie_derivative(sampled, x, claim)
    assert {r.mode for r in plain} == {"forward"}
    assert {r.mode for r in twice} == {"double backward"}
    for a, found in zip(SO3().generators(), twice, strict=True):
        change = sampled(x @ a.T)  # the sampler is linear in its image
        assert found.rate == pytest.approx(float(change.square().sum().div(8).sqrt()), rel=1e-12)


@pytest.mark.parametrize(
    "function",
    [torch.round, lambda x: x.argsort(-1).double(), lambda x: F.one_hot(x.argmax(1), 3).double()],
)
def test_a_zero_derivative_is_no_invariance(function) -> None:
    claim = Equivariance(SO3(), vectors, trivial)
    for found in lie_derivative(function, 3 * normal(8, 3), claim):
        assert found.verdict == "unresolved"
        assert "no derivative" in found.note
    assert equivariance_error(function, 3 * normal(8, 3), claim).verdict == "violated"


def test_fourier_tangents_measure_translations_exactly() -> None:
    x = normal(4, 1, 9, 9)
    claim = Equivariance(Translations((2.0, 2.0), whole=False), FourierShift(), FourierShift())
    blur = lambda x: x + torch.roll(x, 1, -1)
    assert {r.verdict for r in lie_derivative(blur, x, claim)} == {"holds"}
    ramp = torch.arange(9.0).double()
    along_x = lie_derivative(lambda x: x * ramp, x, claim)
    assert [r.verdict for r in along_x] == ["holds", "violated"]


@pytest.mark.parametrize("waves", [3, 8])
def test_squaring_aliases_above_a_quarter_of_the_sampling_rate(waves: int) -> None:
    """Waves up to n / 4 have squares that the grid of n = 25 holds; others come back folded."""
    at = torch.arange(25.0).double()
    phases = 2 * math.pi * torch.rand(6, 1, generator=torch.Generator().manual_seed(0)).double()
    x = torch.cos(2 * math.pi * waves * at / 25 + phases)
    claim = Equivariance(
        Translations((2.0,), whole=False), FourierShift((-1,)), FourierShift((-1,))
    )
    verdict = "holds" if waves / 25 < 0.25 else "violated"
    assert equivariance_error(torch.square, x, claim).verdict == verdict
    assert lie_derivative(torch.square, x, claim)[0].verdict == verdict


def test_gradient_and_curl_tell_the_right_action_of_fields_from_wrong_ones() -> None:
    phi, group = normal(4, 1, 8, 8), Dihedral(4)
    right = Equivariance(group, scalar_field, vector_field)
    assert equivariance_error(gradient, phi, right).verdict == "holds"
    scalar = equivariance_error(gradient, phi, Equivariance(group, scalar_field, scalar_field))
    assert scalar.relative_error == pytest.approx(math.sqrt(2), rel=0.2)
    opposite = lambda g, u: vector_field(g, u) * (1 if g == 0 else -1 if g % 2 else 1)
    turned = Equivariance(Cyclic(4), scalar_field, opposite)
    assert equivariance_error(gradient, phi, turned).worst == pytest.approx(2.0)
    u = normal(4, 2, 8, 8)
    whirl = Equivariance(group, vector_field, pseudo_scalar_field)
    assert equivariance_error(curl, u, whirl).verdict == "holds"
    plain = equivariance_error(curl, u, Equivariance(group, vector_field, scalar_field))
    assert plain.worst == pytest.approx(2.0)


def burgers(u: Tensor, time: float, steps: int, viscosity: float = 0.05) -> Tensor:
    """Spectral Runge-Kutta solution of u_t + u u_x = nu u_xx on a ring of length 2 pi."""
    n = u.shape[-1]
    k = torch.fft.rfftfreq(n, 1 / n, dtype=torch.float64)
    keep = k < n / 3

    def rate(v: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(v)
        slope = torch.fft.irfft(1j * k * spectrum, n=n)
        advected = torch.fft.irfft(keep * torch.fft.rfft(v * slope), n=n)
        return -advected + torch.fft.irfft(-viscosity * k**2 * spectrum, n=n)

    h = time / steps
    for _ in range(steps):
        a = rate(u)
        b = rate(u + h / 2 * a)
        c = rate(u + h / 2 * b)
        u = u + h / 6 * (a + 2 * b + 2 * c + rate(u + h * c))
    return u


def test_burgers_equation_is_galilean_invariant_and_translation_equivariant() -> None:
    n, time = 31, 0.05
    x = 2 * math.pi * torch.arange(n).double() / n
    u = torch.stack([torch.sin(x), torch.cos(2 * x) + 0.3 * torch.sin(x + 1)])
    speed = (2 * math.pi / n) / time  # one cell during the whole time
    solve = lambda u: burgers(u, time, 200, viscosity=0.1)
    measure = lambda claim: equivariance_error(solve, u, claim, samples=3)
    boost = Equivariance(Translations((2,)), Boost(speed), Boost(speed, cells=1))
    assert measure(boost).relative_error < 1e-12
    still = Equivariance(Translations((2,)), Boost(speed), Boost(speed))
    assert measure(still).verdict == "violated"
    moved = Equivariance(Cyclic(n), Roll(), Roll())
    assert measure(moved).verdict == "holds"


def molecule(batch):
    """Energy, forces and an angular moment of point charges; all from pair distances."""
    x, charge = batch["positions"], batch["charges"]
    d = x[:, :, None] - x[:, None]
    kernel = charge[:, :, None] * charge[:, None] * torch.exp(-d.square().sum(-1))
    force = (kernel[..., None] * d).sum(2)
    moment = torch.linalg.cross(x - x.mean(1, keepdim=True), force).sum(1)
    return {"energy": 1e4 * kernel.sum((1, 2)), "forces": 1e-3 * force, "moment": moment + 1e-30}


def molecular(**changed) -> Equivariance:
    outputs = {"energy": trivial, "forces": vectors, "moment": trivial} | changed
    inputs = Each({"positions": positions, "charges": trivial})
    return Equivariance(E3(), inputs, Each(outputs))


def test_structured_outputs_count_alike_whatever_their_scales() -> None:
    batch = {"positions": normal(4, 5, 3), "charges": normal(4, 5, seed=1)}
    plain = lambda b: {k: v for k, v in molecule(b).items() if k != "moment"}
    both = {"energy": trivial, "forces": vectors}
    claim = Equivariance(E3(), molecular().input_action, Each(both))
    good = equivariance_error(plain, batch, claim)
    assert good.verdict == "holds"
    assert set(good.parts) == {"energy", "forces"}
    wrong = Equivariance(E3(), molecular().input_action, Each(both | {"forces": axial_vectors}))
    bad = equivariance_error(plain, batch, wrong)
    assert bad.verdict == "violated"
    assert bad.parts["energy"] < 1e-12 < 1 < bad.parts["forces"]
    assert {r.verdict for r in lie_derivative(plain, batch, replace_group(claim))} == {"holds"}


def replace_group(claim: Equivariance) -> Equivariance:
    return Equivariance(SE3(), claim.input_action, claim.output_action)


def test_graph_networks_commute_with_renaming_when_every_part_is_moved() -> None:
    weight = normal(3, 3)

    def network(graph):
        source, target = graph["edges"]
        message = (graph["x"][source] @ weight) * graph["weight"][:, None]
        return torch.zeros_like(graph["x"]).index_add(0, target, message)

    graph = {
        "x": normal(6, 3),
        "edges": torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]]),
        "weight": normal(7, seed=2),
    }
    parts = {"x": Permute(-2), "edges": Relabel(), "weight": trivial}
    batch = batch_of_one(graph)
    claim = Equivariance(Symmetric(6), Each(parts), Permute(-2))
    assert equivariance_error(one_sample(network), batch, claim).verdict == "holds"
    forgotten = Equivariance(Symmetric(6), Each(parts | {"edges": trivial}), Permute(-2))
    assert equivariance_error(one_sample(network), batch, forgotten).verdict == "violated"


def test_attention_needs_its_padding_mask_permuted() -> None:
    attention = torch.nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64).eval()
    mask = torch.tensor([[False] * 4 + [True] * 2]).expand(3, 6).contiguous()
    network = lambda batch: attention(batch[0], batch[0], batch[0], key_padding_mask=batch[1])[0]
    claim = lambda act: Equivariance(Symmetric(6), Each((Permute(-2), act)), Permute(-2))
    batch = (normal(3, 6, 4), mask)
    assert equivariance_error(network, batch, claim(Permute(-1))).verdict == "holds"
    assert equivariance_error(network, batch, claim(trivial)).verdict == "violated"


def test_zero_padded_shifts_are_compared_inside_only() -> None:
    kernel, x = normal(1, 1, 3, 3), normal(3, 1, 20, 20)
    net = lambda x: F.conv2d(F.conv2d(x, kernel, padding=1), kernel, padding=1)
    group = Translations((2, 2))
    inside = Equivariance(group, Shift((2, 2)), Shift((2, 2), margin=2))
    found = equivariance_error(net, x, inside)
    assert found.verdict == "holds"
    assert found.decibels() > 200
    naive = Equivariance(group, lambda g, x: Shift((2, 2))(g, x), lambda g, x: Shift((2, 2))(g, x))
    assert equivariance_error(net, x, naive, check=False).verdict != "holds"


def test_consistency_is_the_share_of_equal_answers_and_only_of_ranked_ones() -> None:
    x = torch.tensor([[2.0, 1.0], [1.0, 3.0], [-1.0, -2.0]])
    claim = Equivariance(Sign(), Parity(), trivial)
    assert equivariance_error(lambda x: x, x, claim).consistency == 0.0
    assert equivariance_error(lambda x: x.abs(), x, claim).consistency == 1.0
    assert equivariance_error(lambda x: x[:, :1], x, claim).consistency is None


@pytest.mark.parametrize(
    ("name", "dimension", "function", "shape"),
    [
        ("so(3)", 3, lambda x: x.square().sum(-1, keepdim=True).sin(), (300, 3)),
        ("so(5)", 10, lambda x: torch.stack(
            [x[:, 0].square().sum(-1).sin(), (x[:, 0] * x[:, 1]).sum(-1)], 1), (300, 2, 5)),
        ("so(1,3) (Lorentz)", 6, lambda x: x[:, :1] ** 2 - x[:, 1:].square().sum(1, True),
         (300, 4)),
    ],
)  # fmt: skip
def test_discovery_recovers_dimension_and_name(name, dimension, function, shape) -> None:
    found = discover_data(function, normal(*shape))
    assert (found.dimension, found.name) == (dimension, name)
    assert found.gap > 1e10 > 10 > found.null_gap
    assert found.closure < 1e-10
    assert found.basis.shape == (dimension, shape[-1], shape[-1])
    assert closure(normal(3, 3, 3)) > 0.1


@pytest.mark.parametrize(
    "function",
    [lambda x: x.tanh().sum(1, True), lambda x: (x**4).sum(1, True), lambda x: x @ WEIGHT],
)
def test_discovery_finds_nothing_in_functions_without_continuous_symmetry(function) -> None:
    found = discover_data(function, normal(300, 3, seed=1))
    assert found.dimension == 0


def test_opposite_outputs_do_not_cancel_in_discovery() -> None:
    odd = lambda x: torch.cat([x.tanh(), -x.tanh()], 1)
    assert discover_data(odd, normal(300, 3)).dimension == 0


@pytest.mark.parametrize(
    ("function", "x", "note"),
    [
        (lambda x: 0 * x + 1, normal(300, 3), "does not change"),
        (lambda x: x.square().sum(1, True), normal(5, 3), "5 rows for 9 unknowns"),
        (lambda x: x.square().sum(1, True), normal(300, 3) * torch.tensor([1, 1, 0]), "span"),
    ],
)
def test_discovery_says_when_nothing_can_be_identified(function, x, note: str) -> None:
    found = discover_data(function, x)
    assert found.dimension is None
    assert note in found.note


def test_lorentz_invariants_hold_and_grow_with_rapidity() -> None:
    claim = lambda rapidity: Equivariance(Lorentz(rapidity), vectors, trivial)
    square = lambda x: x[:, :1] ** 2 - x[:, 1:].square().sum(1, True)
    assert equivariance_error(square, normal(16, 4), claim(1.0)).verdict == "holds"
    euclid = lambda x: x.square().sum(1, True)
    assert equivariance_error(euclid, normal(16, 4), claim(1.0)).verdict == "violated"


class Forces(nn.Module):
    """Minus the gradient of an energy, as models of molecules take it inside their forward."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        if self.functional:
            return -torch.func.grad(lambda z: self.energy(z).sum())(x)
        with torch.enable_grad():
            x.requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -slope


@pytest.mark.parametrize("functional", [True, False])
def test_gradients_inside_the_model_are_differentiated(functional: bool) -> None:
    torch.manual_seed(0)
    model = Forces(functional)
    x = torch.randn(5, 3, dtype=torch.float64)
    claim = Equivariance(SO3(), vectors, vectors)
    found = [one.rate for one in lie_derivative(lambda z: model(z), x, claim)]
    with torch.no_grad():
        h = 1e-5
        for rate, generator in zip(found, SO3().generators(), strict=True):
            turn = lambda s, A=generator: torch.linalg.matrix_exp(s * torch.as_tensor(A))
            there, back = turn(h), turn(-h)
            change = (model(x @ there.T) @ there - model(x @ back.T) @ back) / (2 * h)
            assert rate == pytest.approx(float(change.norm()) / len(x) ** 0.5, rel=1e-6)
