"""The orbit-variance share of infinite groups: in [0, 1], about its closed form, with its error."""

import math

import pytest
import torch
from torch import Tensor

from eqtoolbox.symmetry import SO2, Equivariance, EquivarianceResult, equivariance_error
from eqtoolbox.symmetry.actions import trivial
from eqtoolbox.symmetry.group import Cyclic
from eqtoolbox.symmetry.linear import vectors
from eqtoolbox.symmetry.permuting import Roll
from eqtoolbox.symmetry.variance import _products, _without

TURN = Equivariance(SO2(), vectors, trivial)
SEEDS = range(120)


def points() -> Tensor:
    """32 points in all directions at radii 1 .. 2."""
    angle = 2 * math.pi * torch.rand(32, generator=torch.Generator().manual_seed(0)).double()
    radius = torch.linspace(1, 2, 32, dtype=torch.float64)[:, None]
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)


def bent(x: Tensor, amount: float) -> Tensor:
    """r^2 + a x_0: within is a^2 E r^2 / 2, between Var r^2."""
    return x.square().sum(1, keepdim=True) + amount * x[:, :1]


def closed_form(amount: float) -> float:
    square = points().square().sum(1)
    within = amount**2 * float(square.mean()) / 2
    return within / (within + float(square.var(correction=0)))


def drawn(amount: float, samples: int) -> list[EquivarianceResult]:
    return [
        equivariance_error(
            lambda x: bent(x, amount), points(), TURN, samples=samples, check=False,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in SEEDS
    ]  # fmt: skip


@pytest.fixture(scope="module", params=[0.5, 2.0])
def many(request) -> tuple[float, list[EquivarianceResult]]:
    return request.param, drawn(request.param, 24)


def test_the_share_of_a_continuous_group_is_its_closed_form_and_its_error_safe(many) -> None:
    """The jackknife never claims too little; where linear parts vanish, up to sqrt 2 too much."""
    amount, found = many
    values = torch.tensor([r.orbit_variance for r in found])
    stated = torch.tensor([r.orbit_variance_stderr for r in found])
    z = float((values.mean() - closed_form(amount)) / (values.std() / len(SEEDS) ** 0.5))
    assert abs(z) < 4
    assert 0.8 < float(stated.square().mean().sqrt() / values.std()) < 1.8


def test_the_plain_ratio_of_the_draws_would_be_low(many) -> None:
    """Control: within / total of K draws, uncorrected, misses about 1 / K of the variance."""
    amount, _ = many
    x, plain = points(), []
    for seed in SEEDS:
        elements = TURN.group.sample(4, torch.Generator().manual_seed(seed))
        y = torch.stack([bent(TURN.input_action(g, x), amount) for g in elements])
        within = float((y - y.mean(0)).square().mean())
        plain.append(within / float((y - y.mean((0, 1))).square().mean()))
    values = torch.tensor(plain)
    assert float((values.mean() - closed_form(amount)) / (values.std() / len(SEEDS) ** 0.5)) < -4


def test_the_share_never_leaves_0_to_1_where_the_ratio_of_unbiased_parts_does() -> None:
    """x_0 alone: the share is 1, and the part between, of expectation 0, comes out negative."""
    one = lambda x: x[:, :1]
    found = [
        equivariance_error(
            one, points(), TURN, samples=5, check=False,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in SEEDS
    ]  # fmt: skip
    values = [r.orbit_variance for r in found]
    assert all(0.0 <= v <= 1.0 for v in values)
    assert sum(v == 1.0 for v in values) > 20
    assert all(r.orbit_variance_stderr >= 0 for r in found)


def test_an_invariant_function_has_no_share_and_two_draws_no_error() -> None:
    x = points()
    kept = equivariance_error(lambda x: bent(x, 0.0), x, TURN)
    assert kept.orbit_variance < kept.orbit_variance_floor < 1e-25
    assert kept.verdict == "holds"
    two = equivariance_error(lambda x: bent(x, 1.0), x, TURN, samples=3)
    assert math.isnan(two.orbit_variance_stderr) and not math.isnan(two.orbit_variance)


def test_the_error_of_large_outputs_comes_from_their_first_samples() -> None:
    """Only 2^18 numbers an element are kept: of 8 samples of 2^16 outputs four, as good as all."""
    x = points()[:8]
    wide = lambda x: bent(x, 1.0).expand(-1, 2**16)
    all_rows = equivariance_error(lambda x: bent(x, 1.0), x, TURN, check=False)
    some = equivariance_error(wide, x, TURN, check=False)
    assert some.orbit_variance == pytest.approx(all_rows.orbit_variance, rel=1e-9)
    ratio = some.orbit_variance_stderr / all_rows.orbit_variance_stderr
    assert 0.2 < ratio < 5 and ratio != pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("samples", [64, 4])
def test_the_share_of_a_finite_group_is_the_one_of_all_its_elements(samples: int) -> None:
    """f_g(x) = R_g^-1 f(S_g x) for every g, the identity among them; drawn ones estimate it."""
    n, x = 6, torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.arange(1.0, n + 1, dtype=torch.float64)
    each = torch.stack([torch.roll(torch.roll(x, g, -1) * weight, -g, -1) for g in range(n)])
    within = each.var(dim=0, correction=0).mean(dim=0).sum()
    share = float(within / each.flatten(0, 1).var(dim=0, correction=0).sum())
    claim = Equivariance(Cyclic(n), Roll(), Roll())
    rng = torch.Generator().manual_seed(1)
    runs = 1 if samples > n else 400
    found = [
        equivariance_error(lambda u: u * weight, x, claim, samples=samples, generator=rng)
        for _ in range(runs)
    ]
    mean = sum(r.orbit_variance for r in found) / runs
    assert mean == pytest.approx(share, rel=1e-12 if runs == 1 else 0.03)


def test_each_row_left_out_leaves_the_mean_of_the_others() -> None:
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others = [torch.cat([rows[:k], rows[k + 1 :]]).mean(0).square().sum() for k in range(5)]
    assert torch.allclose(_without(_products(rows)), torch.stack(others), rtol=1e-12)
