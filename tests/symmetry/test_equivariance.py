"""Equivariance error against closed forms and naive sums, with models that obey and that do not."""

import math
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.symmetry import (
    Equivariance,
    EquivarianceResult,
    equivariance_error,
    percent_of_loss,
    pulled_back,
)
from eqtoolbox.symmetry.actions.action import Action, dihedral, flip, quarter_turn, roll, trivial
from eqtoolbox.symmetry.groups.group import Cyclic, CyclicTranslation, Dihedral, Flip, Group

TURN_FIELD = Equivariance(Cyclic(4), quarter_turn, quarter_turn)
TURN = Equivariance(Cyclic(4), quarter_turn, trivial)
ROLL_FIELD = Equivariance(CyclicTranslation(8), roll, roll)
ROLL = Equivariance(CyclicTranslation(8), roll, trivial)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def turn_averaged(kernel: Tensor) -> Tensor:
    return sum(torch.rot90(kernel, k, dims=(-2, -1)) for k in range(4)) / 4


class TurnNet(nn.Module):
    """Three convolutions whose kernels equal their quarter turns, plus `broken` times noise."""

    def __init__(
        self, broken: float = 0.0, dtype: torch.dtype = torch.float64, width: int = 6
    ) -> None:
        super().__init__()
        self.kernels = []
        for layer, channels in enumerate((1, width, width)):
            kernel = normal(width, channels, 3, 3, seed=layer) / (9 * channels) ** 0.5
            noise = normal(width, channels, 3, 3, seed=9 + layer) / (9 * channels) ** 0.5
            self.kernels.append(2 * turn_averaged(kernel.to(dtype)) + broken * noise.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        for kernel in self.kernels:
            x = F.relu(F.conv2d(x, kernel, padding=1))
        return x


def convolution(kernel: Tensor, *, stride: int = 1, circular: bool = False):
    pad = {"pad": (1, 1, 1, 1), "mode": "circular" if circular else "constant"}
    return lambda x: F.conv2d(F.pad(x, **pad), kernel, stride=stride)


def invariant_projection(group: Group, action: Action, size: int) -> Tensor:
    """Matrix of the mean of S_g over the group on flattened size x size images."""
    basis = torch.eye(size * size, dtype=torch.float64).reshape(-1, size, size)
    moved = torch.stack([action(g, basis) for g in group.elements()])
    return moved.mean(dim=0).reshape(size * size, size * size)


def exactly_white(size: int) -> Tensor:
    """A batch with mean zero and identity covariance: both signs of every pixel."""
    basis = size * torch.eye(size * size, dtype=torch.float64).reshape(-1, 1, size, size)
    return torch.cat([basis, -basis])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tied_convolution_with_stride_2_holds_at_17_and_breaks_at_16(dtype: torch.dtype) -> None:
    model = convolution(turn_averaged(normal(4, 1, 3, 3, dtype=dtype)), stride=2)
    odd = equivariance_error(model, normal(4, 1, 17, 17, dtype=dtype), TURN_FIELD)
    even = equivariance_error(model, normal(4, 1, 16, 16, dtype=dtype), TURN_FIELD)
    assert odd.verdict == "holds"
    assert odd.relative_error < 3 * torch.finfo(dtype).eps
    assert even.verdict == "violated"
    assert even.relative_error > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_circular_padding_keeps_translations_and_zero_padding_breaks_them(dtype) -> None:
    kernel, x = normal(4, 1, 3, 3, dtype=dtype), normal(4, 1, 8, 8, dtype=dtype)
    kept = equivariance_error(convolution(kernel, circular=True), x, ROLL_FIELD)
    lost = equivariance_error(convolution(kernel), x, ROLL_FIELD)
    assert kept.verdict == "holds"
    assert lost.verdict == "violated"


@pytest.mark.parametrize(
    "symmetry",
    [TURN, ROLL, Equivariance(Dihedral(4), dihedral, trivial), Equivariance(Flip(), flip, trivial)],
    ids=lambda symmetry: symmetry.name,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sum_pooling_is_invariant_and_one_pixel_is_not(symmetry, dtype) -> None:
    x = normal(16, 3, 8, 8, dtype=dtype)
    pooled = equivariance_error(lambda x: x.square().sum(dim=(-2, -1)), x, symmetry)
    assert pooled.verdict == "holds"
    assert pooled.orbit_variance <= 9 * pooled.orbit_variance_floor
    assert equivariance_error(lambda x: x[:, :, 1, 2], x, symmetry).verdict == "violated"


@pytest.mark.parametrize(
    ("dtype", "broken", "verdict"),
    [
        (torch.float64, 0.0, "holds"),
        (torch.float64, 1e-12, "violated"),
        (torch.float64, 1e-8, "violated"),
        (torch.float64, 1e-7, "violated"),
        (torch.float64, 1e-6, "violated"),
        (torch.float64, 1e-5, "violated"),
        (torch.float64, 1e-3, "violated"),
        (torch.float32, 0.0, "holds"),
        (torch.float32, 1e-8, "holds"),
        (torch.float32, 1e-7, "holds"),
        (torch.float32, 3e-7, "unresolved"),
        (torch.float32, 1e-6, "unresolved"),
        (torch.float32, 2e-6, "violated"),
        (torch.float32, 1e-5, "violated"),
        (torch.float32, 1e-3, "violated"),
        (torch.bfloat16, 0.0, "holds"),
    ],
)
def test_planted_breaking_flips_the_verdict_where_it_leaves_the_floor(dtype, broken, verdict):
    model, x = TurnNet(broken, dtype), normal(16, 1, 9, 9, dtype=dtype)
    result = equivariance_error(model, x, TURN_FIELD)
    assert result.verdict == verdict
    for factor in (1e-4, 1e4) if dtype != torch.bfloat16 else ():
        scaled = equivariance_error(lambda x, c=factor: c * model(x), x, TURN_FIELD)
        assert scaled.verdict == verdict
    if verdict == "violated":  # first order in the planted noise
        assert 0.3 * broken < result.relative_error < 3 * broken


@pytest.mark.parametrize("factor", [1e-4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("broken", [0.0, 1e-4, 1.0])
def test_scaling_the_outputs_changes_no_verdict(factor: float, dtype, broken: float) -> None:
    model, x = TurnNet(broken, dtype), normal(8, 1, 9, 9, dtype=dtype)
    plain = equivariance_error(model, x, TURN_FIELD)
    scaled = equivariance_error(lambda x: factor * model(x), x, TURN_FIELD)
    assert plain.verdict == scaled.verdict == ("violated" if broken else "holds")
    if broken:
        assert scaled.relative_error == pytest.approx(plain.relative_error, rel=1e-2)
        assert scaled.orbit_variance == pytest.approx(plain.orbit_variance, rel=1e-2)


def test_autocast_inside_the_function_raises_the_floor_to_its_dtype() -> None:
    model, x = TurnNet(dtype=torch.float32, width=16), normal(16, 1, 17, 17, dtype=torch.float32)

    def autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    result = equivariance_error(autocast, x, TURN_FIELD)
    assert result.relative_error > 10 * torch.finfo(torch.float32).eps
    assert result.floor >= torch.finfo(torch.bfloat16).eps
    assert result.verdict == "holds"
    assert "lower precision" in result.note


def test_interpolating_action_raises_the_floor_and_a_blind_floor_never_says_holds() -> None:
    def blurred(strength: float) -> Action:
        def mirror(g: bool, x: Tensor) -> Tensor:
            return torch.lerp(flip(g, x), x.roll(1, -1), strength) if g else x

        return mirror

    x = normal(4, 1, 8, 8)
    some = Equivariance(Flip(), blurred(0.01), trivial, tolerance=1.0)
    much = Equivariance(Flip(), blurred(0.3), trivial, tolerance=1.0)
    assert 0.005 < equivariance_error(lambda x: x.abs().sum((-2, -1)), x, some).floor < 0.05
    blind = equivariance_error(lambda x: 1 + 0 * x.sum((-2, -1)), x, much)
    assert blind.verdict == "unresolved"
    assert "the floor hides" in blind.note


def test_random_function_raises_its_floor_and_says_so() -> None:
    dropout = nn.Dropout(0.1)
    x = normal(32, 1, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained = equivariance_error(lambda x: dropout(x).flatten(1).exp().sum(1), x, TURN)
    assert trained.note.startswith("function is random: put the model in eval mode")
    assert trained.floor > 0.01
    assert trained.verdict == "unresolved"
    dropout.eval()
    calm = equivariance_error(lambda x: dropout(x).flatten(1).exp().sum(1), x, TURN)
    assert calm.note == ""
    assert calm.verdict == "holds"


@pytest.mark.parametrize("batch", [2, 32])
def test_dropout_is_seen_in_bfloat16_and_at_every_batch_size(batch: int) -> None:
    dropout, calls = nn.Dropout(0.5), []
    x = normal(batch, 1, 8, 8, dtype=torch.bfloat16)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        result = equivariance_error(
            lambda x: calls.append(len(x)) or dropout(x).square().sum((2, 3)), x, TURN
        )
    assert result.note.startswith("function is random: put the model in eval mode")
    assert sum(calls) <= (result.samples + 3) * batch


def test_ill_conditioned_function_is_not_called_random() -> None:
    x = normal(32, 1, 8, 8)
    result = equivariance_error(lambda x: (1e9 * x.square().sum((-2, -1))).sin(), x, TURN)
    assert result.note == ""
    assert result.floor > 1e3 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize(
    ("group", "action"),
    [
        (Cyclic(4), quarter_turn),
        (Dihedral(4), dihedral),
        (Flip(), flip),
        (CyclicTranslation(4), roll),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_linear_layer_on_white_noise_has_the_energy_of_its_invariant_part(group, action) -> None:
    """E Var_g |W S_g x|^2 = |W|^2 - |W P|^2 for E x x^T = 1, P the mean of S_g."""
    weight, x = normal(7, 16), exactly_white(4)
    invariant = invariant_projection(group, action, 4)
    asymmetric = 1 - float((weight @ invariant).square().sum() / weight.square().sum())
    result = equivariance_error(
        lambda x: x.flatten(1) @ weight.T, x, Equivariance(group, action, trivial), samples=99
    )
    others = group.order / (group.order - 1)
    assert result.enumerated
    assert result.samples == group.order - 1
    assert result.stderr == 0.0
    assert result.orbit_variance == pytest.approx(asymmetric, rel=1e-12)
    assert result.relative_error**2 == pytest.approx(2 * others * asymmetric, rel=1e-12)
    assert result.worst >= result.relative_error

    obedient = weight @ invariant
    kept = equivariance_error(
        lambda x: x.flatten(1) @ obedient.T, x, Equivariance(group, action, trivial), samples=99
    )
    assert kept.verdict == "holds"
    assert kept.orbit_variance < 1e-28


def test_unrelated_function_has_relative_error_root_two() -> None:
    """The squared error of 2000 independent outputs is 2, with a standard deviation below 0.09."""
    weight, x = normal(2000, 64, seed=1), normal(1, 1, 8, 8)
    scrambled = lambda x: (1e6 * x.flatten(1) @ weight.T).sin()
    result = equivariance_error(scrambled, x, TURN)
    assert result.relative_error**2 == pytest.approx(2.0, abs=4 * 0.09)


def test_orbit_variance_is_one_when_the_batch_is_an_orbit() -> None:
    x = torch.stack([dihedral(g, normal(1, 5, 5)) for g in Dihedral(4).elements()])
    symmetry = Equivariance(Dihedral(4), dihedral, trivial)
    result = equivariance_error(lambda x: x.flatten(1).exp()[:, :3], x, symmetry)
    assert result.orbit_variance == pytest.approx(1.0, rel=1e-12)


def test_offset_hides_a_violation_from_relative_error_but_not_from_orbit_variance() -> None:
    weight, x = normal(5, 64), normal(64, 1, 8, 8)
    bare = equivariance_error(lambda x: x.flatten(1) @ weight.T, x, TURN)
    biased = equivariance_error(lambda x: x.flatten(1) @ weight.T + 1e5, x, TURN)
    assert biased.relative_error < 1e-3 * bare.relative_error
    assert biased.orbit_variance == pytest.approx(bare.orbit_variance, rel=1e-6)
    assert biased.orbit_variance > 0.5
    assert biased.verdict == "violated"


def skewed(g: bool, y: Tensor) -> Tensor:
    """A mirror that is not orthogonal, so that |f_g - f| and |f(S_g x) - R_g f(x)| differ."""
    matrix = torch.tensor([[1.0, 0.0], [3.0, -1.0]], dtype=y.dtype)
    return y @ matrix.T if g else y


@pytest.mark.parametrize(
    ("symmetry", "outputs"),
    [
        (TURN_FIELD, 0),
        (ROLL_FIELD, 0),
        (Equivariance(Dihedral(4), dihedral, dihedral), 0),
        (Equivariance(Flip(), flip, skewed), 2),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_numbers_equal_the_naive_sums_over_the_group(symmetry: Equivariance, outputs: int) -> None:
    weight, x, group = normal(64, 2), normal(5, 1, 8, 8), symmetry.group

    def model(x: Tensor) -> Tensor:
        return (
            x.flatten(1).sin() @ weight + 1 if outputs else convolution(normal(2, 1, 3, 3))(x).exp()
        )

    result = equivariance_error(model, x, symmetry, samples=64)
    squares, energies, orbit = {}, {}, []
    for g in group.elements():
        left, right = model(symmetry.input_action(g, x)), symmetry.output_action(g, model(x))
        orbit.append(symmetry.output_action(group.inverse(g), left))
        if g != group.identity:
            squares[g], energies[g] = (left - right).pow(2).sum(), right.pow(2).sum()
    twirled = torch.stack(orbit).flatten(2)  # (group, batch, features)
    within = twirled.var(dim=0, correction=0).sum(dim=-1).mean()
    total = twirled.flatten(0, 1).var(dim=0, correction=0).sum()
    worst = max(squares, key=lambda g: float(squares[g] / energies[g]))
    error = math.sqrt(sum(squares.values()) / sum(energies.values()))
    assert result.relative_error == pytest.approx(error, rel=1e-12)
    assert result.orbit_variance == pytest.approx(float(within / total), rel=1e-10)
    assert result.worst == pytest.approx(
        float((squares[worst] / energies[worst]).sqrt()), rel=1e-12
    )
    assert result.worst_element == worst


def lit(x: Tensor) -> Tensor:
    """Breaks translations by light that comes from a corner: long shifts more than short ones."""
    wave = torch.cos(torch.arange(8, dtype=x.dtype) * torch.pi / 4)
    return (x * (2 + wave[:, None] + wave)).tanh()


SEEDS = range(200)


@pytest.fixture(scope="module")
def sampled() -> list[EquivarianceResult]:
    x = normal(6, 1, 8, 8)
    draw = lambda seed: equivariance_error(
        lit, x, ROLL_FIELD, samples=9, generator=seeded(seed), check=False
    )
    return [draw(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def enumerated() -> EquivarianceResult:
    return equivariance_error(lit, normal(6, 1, 8, 8), ROLL_FIELD, samples=64)


def test_sampled_error_agrees_with_the_full_group(sampled, enumerated) -> None:
    assert enumerated.enumerated
    assert not sampled[0].enumerated
    assert sampled[0].samples == 8
    for result in sampled[:20]:
        assert abs(result.relative_error - enumerated.relative_error) < 4 * result.stderr
        assert result.worst <= enumerated.worst


def test_sampled_square_is_unbiased_and_its_stderr_is_calibrated(sampled, enumerated) -> None:
    """Rolls keep norms, so the squared error is a plain mean of 8, of variance s^2 / 8."""
    truth = enumerated.relative_error**2
    squares = torch.tensor([r.relative_error**2 for r in sampled], dtype=torch.float64)
    claimed = torch.tensor([2 * r.relative_error * r.stderr for r in sampled], dtype=torch.float64)
    z = (squares.mean() - truth) / (squares.std() / len(SEEDS) ** 0.5)
    excess = (squares - truth).square() - claimed.square()
    assert abs(z) < 4
    assert abs(excess.mean() / (excess.std() / len(SEEDS) ** 0.5)) < 4
    assert 0.7 < claimed.square().mean() / squares.var() < 1.4


def test_halved_stderr_would_fail_the_calibration(sampled, enumerated) -> None:
    truth = enumerated.relative_error**2
    squares = torch.tensor([r.relative_error**2 for r in sampled], dtype=torch.float64)
    claimed = torch.tensor([r.relative_error * r.stderr for r in sampled], dtype=torch.float64)
    excess = (squares - truth).square() - claimed.square()
    assert excess.mean() / (excess.std() / len(SEEDS) ** 0.5) > 4


def test_sampled_orbit_variance_agrees_with_the_full_group(sampled, enumerated) -> None:
    fractions = torch.tensor([r.orbit_variance for r in sampled], dtype=torch.float64)
    z = (fractions.mean() - enumerated.orbit_variance) / (fractions.std() / len(SEEDS) ** 0.5)
    assert abs(z) < 4


def test_sampled_orbit_variance_is_one_for_noise_of_g() -> None:
    """With output h(g) alone, unbiased numerator and denominator agree draw by draw."""
    x = torch.zeros(3, 1, 8, 8, dtype=torch.float64)
    x[:, 0, 0, 0] = 1.0  # f reads where the one bright pixel went
    where = normal(64, 2)
    result = equivariance_error(lambda x: x.flatten(1) @ where, x, ROLL, generator=seeded(5))
    assert result.orbit_variance == pytest.approx(1.0, rel=1e-12)


def test_the_identity_is_never_drawn() -> None:
    """It costs a forward and says nothing: its error is 0 by definition."""
    x = normal(2, 1, 3, 3)
    for seed in range(20):
        result = equivariance_error(
            lambda x: x.flatten(1), x, TURN, samples=3, generator=seeded(seed)
        )
        assert not result.enumerated
        assert result.relative_error > 0.75 * result.worst  # a zero among two gives 0.71


def test_one_sample_has_no_stderr_and_no_variance() -> None:
    result = equivariance_error(lit, normal(4, 1, 8, 8), ROLL_FIELD, samples=2)
    assert result.relative_error > 0
    assert math.isnan(result.stderr)
    assert math.isnan(result.orbit_variance)


def test_result_depends_on_the_generator_alone_and_the_global_one_is_untouched() -> None:
    x, before = normal(4, 1, 8, 8), torch.get_rng_state()
    first = equivariance_error(lit, x, ROLL_FIELD, generator=seeded(1))
    again = equivariance_error(lit, x, ROLL_FIELD, generator=seeded(1))
    other = equivariance_error(lit, x, ROLL_FIELD, generator=seeded(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert first != other
    assert equivariance_error(lit, x, ROLL_FIELD) == equivariance_error(lit, x, ROLL_FIELD)


def test_decibels_of_a_known_pattern_are_their_closed_form() -> None:
    """f(x) = x + p with p odd under the flip: the violation is 2p, -20 log10 a for |p| = a."""
    p = 0.05 * torch.cat([torch.ones(4), -torch.ones(4)]).double()
    mirrored = Equivariance(Flip(), flip, flip)
    found = equivariance_error(lambda x: x + p, normal(4, 1, 8, 8), mirrored)
    assert found.decibels() == pytest.approx(-20 * math.log10(0.05), rel=1e-12)
    assert found.decibels(peak=1.0) == pytest.approx(-20 * math.log10(0.1), rel=1e-12)
    assert equivariance_error(lambda x: 2 * x, normal(4, 1, 8, 8), mirrored).decibels() == math.inf


def test_standard_errors_of_shares_are_the_spread_over_draws() -> None:
    """Within a factor of 1.7, over 100 draws of 8 elements of a small violation."""
    x = normal(6, 1, 8, 8)
    loss = lambda y: (y - x).square().mean()
    near = lambda x: x * (1 + 0.05 * lit(x))
    found = [
        equivariance_error(
            near, x, ROLL_FIELD, samples=9, generator=seeded(i), loss=loss, check=False
        )
        for i in range(100)
    ]
    stated_by = {
        "orbit_variance": lambda f: f.orbit_variance_stderr,
        "percent_of_loss": lambda f: f.stderr_of(f.percent_of_loss),
    }
    for name, of in stated_by.items():
        values = torch.tensor([getattr(f, name) for f in found])
        stated = torch.tensor([of(f) for f in found])
        assert 1 / 1.7 < float(values.std() / stated.mean()) < 1.7


def test_percent_of_squared_loss_is_the_exact_split() -> None:
    """E|f_g - y|^2 = |E f_g - y|^2 + E|f_g - E f_g|^2."""
    model, x, y = TurnNet(broken=0.5), normal(6, 1, 7, 7), normal(6, 6, 7, 7, seed=4)
    orbit = pulled_back(model, x, TURN_FIELD, Cyclic(4).elements())
    assert orbit.shape == (4, 6, 6, 7, 7)
    variance = (orbit - orbit.mean(dim=0)).square().mean()
    total = (orbit - y).square().mean()
    loss = lambda outputs: F.mse_loss(outputs, y)
    assert percent_of_loss(orbit, loss) == pytest.approx(float(100 * variance / total), rel=1e-12)
    result = equivariance_error(model, x, TURN_FIELD, loss=loss)
    assert result.percent_of_loss == pytest.approx(float(100 * variance / total), rel=1e-12)
    rest = (orbit.mean(dim=0) - y).square().mean()
    assert float(total - rest) == pytest.approx(float(variance), rel=1e-12)


def test_percent_of_a_convex_loss_is_positive_and_zero_without_violation() -> None:
    x, labels, weight = normal(6, 1, 7, 7), torch.arange(6) % 3, normal(49, 3)
    loss = lambda logits: F.cross_entropy(logits, labels)
    broken = equivariance_error(lambda x: x.flatten(1) @ weight, x, TURN, loss=loss)
    kept = equivariance_error(
        lambda x: x.abs().sum((1, 2, 3))[:, None] * weight[0], x, TURN, loss=loss
    )
    assert 1 < broken.percent_of_loss < 100
    assert abs(kept.percent_of_loss) < 1e-10
    concave = equivariance_error(
        lambda x: x.flatten(1) @ weight, x, TURN, loss=lambda y: 10 - y.square().mean().clamp(max=9)
    )
    assert concave.percent_of_loss < 0  # not a convex loss: Jensen's sign turns


def test_relative_error_and_percent_of_loss_can_disagree() -> None:
    """A small violation is all that is left of the loss of a model that fits its targets."""
    model, x = TurnNet(broken=1e-3), normal(6, 1, 7, 7)
    targets = pulled_back(model, x, TURN_FIELD, Cyclic(4).elements()).mean(dim=0)
    result = equivariance_error(
        model, x, TURN_FIELD, loss=lambda outputs: F.mse_loss(outputs, targets)
    )
    assert result.relative_error < 1e-2
    assert result.percent_of_loss == pytest.approx(100.0, rel=1e-9)


def test_percent_of_loss_cannot_be_said_for_a_zero_loss() -> None:
    orbit = normal(3, 2, 1)
    assert math.isnan(percent_of_loss(orbit, lambda y: 0.0 * y.sum()))
    assert math.isnan(percent_of_loss(orbit, lambda y: math.nan * y.sum()))
    result = equivariance_error(
        lambda x: x.sum((2, 3)), normal(2, 1, 3, 3), TURN, loss=lambda y: 0.0 * y.sum()
    )
    assert math.isnan(result.percent_of_loss)
    assert (
        equivariance_error(lambda x: x.sum((2, 3)), normal(2, 1, 3, 3), TURN).percent_of_loss
        is None
    )


def test_gradients_flow_through_pulled_back_predictions_and_not_through_the_error() -> None:
    weight = normal(9, 2).requires_grad_()
    model = lambda x: x.flatten(1) @ weight
    orbit = pulled_back(model, normal(3, 1, 3, 3), TURN, [0, 1])
    (gradient,) = torch.autograd.grad((orbit[0] - orbit[1]).square().sum(), weight)
    assert gradient.norm() > 0
    graphs = []  # of what the function returned

    def watched(x: Tensor) -> Tensor:
        y, mark = model(x), nn.Identity()
        y.register_hook(lambda g: mark(g))  # held by the graph
        graphs.append(weakref.ref(mark))
        return y

    equivariance_error(watched, normal(3, 1, 3, 3), TURN)
    assert graphs
    assert all(graph() is None for graph in graphs)  # each is gone


def test_single_sample_and_constant_outputs_have_no_orbit_variance() -> None:
    single = equivariance_error(lambda x: x.flatten(1), normal(1, 1, 3, 3), TURN)
    constant = equivariance_error(lambda x: 0 * x.flatten(1) + 7, normal(4, 1, 3, 3), TURN)
    assert single.relative_error > 1
    assert math.isnan(single.orbit_variance)
    assert constant.relative_error == 0.0
    assert constant.verdict == "trivial"
    assert math.isnan(constant.orbit_variance)
    assert math.isnan(constant.orbit_variance_floor)
    rounded = equivariance_error(
        lambda x: 4 + 4e-7 * x.flatten(1), normal(4, 1, 3, 3, dtype=torch.float32), TURN
    )
    assert rounded.relative_error > 0
    assert math.isnan(rounded.orbit_variance)


def test_zero_outputs_are_unresolved() -> None:
    result = equivariance_error(lambda x: 0 * x.flatten(1), normal(4, 1, 3, 3), TURN)
    assert math.isnan(result.relative_error)
    assert math.isnan(result.worst)
    assert math.isnan(result.orbit_variance)
    assert result.verdict == "unresolved"
    assert result.note == "all outputs are zero: nothing to compare"


def test_outputs_that_vanish_only_without_the_transformation_are_violated() -> None:
    x = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    x[:, 0, 0, 0] = 1.0
    result = equivariance_error(lambda x: x[:, :, 2, 2], x, TURN)
    assert result.relative_error == math.inf
    assert result.verdict == "violated"


@pytest.mark.parametrize("batch", [4, 8, 64, 256])
@pytest.mark.parametrize("elements", [2, 4, 8])
def test_eight_group_elements_cost_at_most_eight_and_a_half_forwards(batch, elements) -> None:
    """Rows that go through the function, in batches; f(x) is the identity's forward."""
    sizes: list[int] = []

    def model(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.flatten(1).tanh()

    x = normal(batch, 1, 8, 8)
    result = equivariance_error(model, x, ROLL, samples=elements)
    assert result.samples == elements - 1
    assert len(sizes) == 3  # f(x), a few samples, all elements together
    assert sum(sizes) <= (elements + 0.5) * batch
    known = x.flatten(1).tanh()
    sizes.clear()
    assert equivariance_error(model, x, ROLL, samples=elements, outputs=known) == result
    assert sum(sizes) <= (elements - 0.5) * batch


def test_function_may_spoil_its_input_and_reuse_its_output() -> None:
    buffer = torch.empty(4, 9, dtype=torch.float64)

    def careless(x: Tensor) -> Tensor:
        x.mul_(3).add_(1)
        return buffer.copy_(x.flatten(1).sin())

    x = normal(4, 1, 3, 3)
    kept = x.clone()
    careful = lambda x: (3 * x + 1).flatten(1).sin()
    for symmetry in (TURN, Equivariance(Flip(), flip, trivial)):
        spoiled = equivariance_error(careless, x, symmetry)
        assert torch.equal(x, kept)
        clean = equivariance_error(careful, x, symmetry)
        assert replace(spoiled, floor=0.0, orbit_variance_floor=0.0) == replace(
            clean, floor=0.0, orbit_variance_floor=0.0
        )
        assert torch.equal(
            pulled_back(careless, x, symmetry, symmetry.group.elements()),
            pulled_back(careful, x, symmetry, symmetry.group.elements()),
        )


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_function_may_hold_something_as_long_as_the_batch(batch: int) -> None:
    mask, x = normal(batch, 9, seed=3).exp(), normal(batch, 1, 3, 3)
    held = equivariance_error(lambda x: x.flatten(1).square().sum(1)[:, None] * mask, x, TURN)
    assert held.verdict == "holds"
    assert held.note == ""


def test_batch_statistics_do_not_enter_the_floor() -> None:
    norm = nn.BatchNorm1d(9, track_running_stats=False, dtype=torch.float64)
    x = normal(64, 1, 3, 3)
    result = equivariance_error(lambda x: norm(x.flatten(1)), x, TURN)
    assert result.floor < 1e-14
    assert result.note == ""


def on_images(function: Callable[[Tensor], object]) -> Callable[[], object]:
    return lambda: equivariance_error(function, normal(4, 1, 6, 6), TURN)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            on_images(lambda x: {"logits": "x"}),
            TypeError,
            "must return one tensor, or a dict, .* got dict; wrap it",
        ),
        (on_images(lambda x: x.flatten(1).argmax(1)), TypeError, "got torch.int64; take logits"),
        (on_images(lambda x: x.mean()), ValueError, r"batch size 4 of the inputs, got shape \(\)"),
        (on_images(lambda x: x[:3]), ValueError, r"batch size 4 .* got shape \(3, 1, 6, 6\)"),
        (on_images(lambda x: x / 0), FloatingPointError, r"got NaN or infinity from f\(x\)"),
        (
            on_images(
                lambda x: x.clamp(min=-9) / (x[:, :, :1, :1] != normal(4, 1, 6, 6)[0, 0, 0, 5])
            ),
            FloatingPointError,
            r"got NaN or infinity from f\(S_g x\)",
        ),
    ],
)
def test_bad_outputs_are_refused(act, error, message) -> None:
    with pytest.raises(error, match=message):
        act()


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (torch.ones(2, 1, 4, 4, dtype=torch.long), TypeError, r"got torch.int64; .*x.float\(\)"),
        ([1.0], TypeError, "inputs must be one tensor, .* got list"),
        (torch.ones(0, 1, 4, 4), ValueError, r"at least one sample, got shape \(0, 1, 4, 4\)"),
        (torch.ones(2, 1, 28, 20), ValueError, "expected height == width, got 28x20"),
    ],
)
def test_bad_inputs_are_refused(inputs, error, message) -> None:
    with pytest.raises(error, match=message):
        equivariance_error(lambda x: x, inputs, TURN)


@pytest.mark.parametrize(
    ("symmetry", "message"),
    [
        (Equivariance(Cyclic(2), quarter_turn, trivial), r"input_action of cyclic2 .* breaks S_g"),
        (Equivariance(CyclicTranslation(5), roll, trivial), "CyclicTranslation of the image size"),
        (Equivariance(Cyclic(4), quarter_turn, quarter_turn), r"output_action .* use trivial"),
    ],
)
def test_wrong_actions_raise_instead_of_measuring(symmetry, message) -> None:
    with pytest.raises(ValueError, match=message):
        equivariance_error(lambda x: x.flatten(1), normal(4, 1, 6, 6), symmetry)


def test_mismatched_outputs_raise_without_the_check_too() -> None:
    grow = Equivariance(Flip(), flip, lambda g, y: torch.cat([y, y], dim=1) if g else y)
    with pytest.raises(ValueError, match=r"R_g f\(x\) at True has shape \(4, 12\)"):
        equivariance_error(lambda x: x[:, 0, 0], normal(4, 1, 6, 6), grow, check=False)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Equivariance(4, quarter_turn, trivial), TypeError, "group must be a Group"),
        (lambda: Equivariance(Cyclic(4), 3, trivial), TypeError, "input_action must be a function"),
        (lambda: Equivariance(Cyclic(1), trivial, trivial), ValueError, "has only the identity"),
        (lambda: replace(TURN, name="c 4"), ValueError, r"letters of \[A-Za-z0-9_.-\], got 'c 4'"),
        (lambda: replace(TURN, tolerance=-1.0), ValueError, "tolerance must be >= 0 or None"),
        (
            lambda: equivariance_error(torch.sin, normal(2, 1, 3, 3), TURN, samples=0),
            ValueError,
            "samples must be >= 2, the identity and one more, got 0",
        ),
        (
            lambda: pulled_back(torch.sin, normal(2, 1, 3, 3), TURN, []),
            ValueError,
            "at least one group element",
        ),
        (
            lambda: percent_of_loss(normal(3), lambda y: y),
            ValueError,
            r"pulled must be \(K, batch, ...\) with K >= 1, got \(3,\)",
        ),
        (
            lambda: percent_of_loss(normal(3, 2), lambda y: y),
            ValueError,
            r"loss must return one number, got shape \(2,\)",
        ),
    ],
)
def test_bad_claims_are_refused(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()


def test_names_follow_the_group_unless_given() -> None:
    assert TURN.name == "cyclic4"
    assert ROLL.name == "translation"
    assert replace(TURN, name="turns-of_32.px").name == "turns-of_32.px"


def test_a_loss_may_ask_for_it_where_forward_derivatives_are_taken() -> None:
    """As probes of curvature do: a mode of torch's would crash the process there."""
    claim = Equivariance(Flip(), lambda g, x: x.flip(-1) if g else x, trivial)
    model, x = torch.nn.Linear(3, 2), torch.randn(8, 3)
    params = dict(model.named_parameters())
    outside = equivariance_error(model, x, claim)
    with forward_ad.dual_level():
        duals = {n: forward_ad.make_dual(p.detach(), torch.ones_like(p)) for n, p in params.items()}
        f = lambda x: torch.func.functional_call(model, duals, x)
        found = equivariance_error(f, x, claim)
    assert found.relative_error == pytest.approx(outside.relative_error)
    assert found.verdict == outside.verdict == "violated"
