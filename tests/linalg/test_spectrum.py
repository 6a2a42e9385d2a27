"""Laws of trace, Frobenius norm, effective rank and spectral density; fixed seeds and z-bounds."""

import math

import pytest
import torch

from eqtoolbox.linalg import hessian, spectral_density, spectral_moments, trace

DECAYING = [100.0 / (i + 1) ** 2 for i in range(200)]
SEMICIRCLE = torch.cos(torch.linspace(0, math.pi, 300, dtype=torch.float64)).tolist()


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _z(values, exact):
    """The statistic of a sample mean, with the error taken from the sample's own scatter."""
    x = torch.tensor(values, dtype=torch.float64)
    return float((x.mean() - exact) / (x.std() / math.sqrt(len(x))))


@pytest.mark.parametrize("values", [DECAYING, SEMICIRCLE, [1.0] * 50])
def test_trace_and_square_are_unbiased_and_their_errors_honest(operator, values):
    H = operator(values)
    exact = {"trace": sum(values), "frobenius_norm": math.sqrt(sum(x * x for x in values))}
    runs = [spectral_moments(H, generator=_rng(seed), matvecs=24) for seed in range(40)]
    for name, truth in exact.items():
        found = [getattr(r, name) for r in runs]
        if max(f.stderr for f in found) < 1e-12 * truth:
            assert found[0].value == pytest.approx(truth, rel=1e-12)
            continue
        assert abs(_z([f.value for f in found], truth)) < 4
        scores = [(f.value - truth) / f.stderr for f in found]
        # 8 probes: Student's t with 7 degrees of freedom, 91 % within 2 and 81 % beyond 1/4
        assert sum(abs(z) < 2 for z in scores) >= 40 * 0.91 - 4 * math.sqrt(40 * 0.91 * 0.09)
        assert sum(abs(z) > 0.25 for z in scores) >= 40 * 0.81 - 4 * math.sqrt(40 * 0.81 * 0.19)


def test_deflation_beats_plain_sampling_on_a_decaying_spectrum(operator):
    H = operator(DECAYING)
    error = trace(H, generator=_rng(), matvecs=48).stderr
    plain = math.sqrt(2 * sum(x * x for x in DECAYING) / 48)
    assert error < 0.02 * plain


def test_low_rank_is_exact(operator):
    found = spectral_moments(operator([3.0, 2.0, -1.0], n=100), generator=_rng())
    assert found.trace.value == pytest.approx(4, abs=1e-10)
    assert found.frobenius_norm.value == pytest.approx(math.sqrt(14), rel=1e-12)
    assert found.effective_rank.value == pytest.approx(16 / 14, rel=1e-10)
    assert found.effective_rank.stderr < 1e-10


def test_effective_rank_counts_equal_eigenvalues(operator):
    found = spectral_moments(operator([2.0] * 30, n=300), generator=_rng(), matvecs=60)
    assert abs(found.effective_rank.value - 30) < 4 * found.effective_rank.stderr + 1e-9


def test_a_small_space_is_measured_exactly_within_its_budget(operator):
    found = spectral_moments(operator([3.0, 2.0, 1.0]), generator=_rng())
    assert found.trace.value == pytest.approx(6, rel=1e-12)
    assert found.matvecs == 6


def test_the_zero_operator_has_no_effective_rank(operator):
    found = spectral_moments(operator([0.0] * 5), generator=_rng())
    assert (found.trace.value, found.frobenius_norm.value) == (0, 0)
    assert math.isnan(found.effective_rank.value)


def test_moments_of_a_network_match_its_dense_hessian(network, dense):
    loss, params = network
    exact = dense(loss, params)
    found = spectral_moments(hessian(loss, params), generator=_rng())
    assert abs(found.trace.value - exact.trace()) < 4 * found.trace.stderr + 1e-9
    assert abs(found.frobenius_norm.value - exact.norm()) < 4 * found.frobenius_norm.stderr + 1e-9


def test_few_rows_are_unbiased_and_cost_precision_alone(operator):
    H = operator([10.0 * 0.8**i for i in range(40)], n=80)
    errors = {}
    for rows in (3, None):
        draws = [torch.Generator().manual_seed(seed) for seed in range(30)]
        found = [spectral_moments(H, generator=g, matvecs=30, rows=rows).trace for g in draws]
        z = [(f.value - 50 * (1 - 0.8**40)) / f.stderr for f in found]
        assert abs(sum(z)) / len(z) ** 0.5 < 4
        errors[rows] = sum(f.stderr for f in found)
    assert errors[3] > 1.5 * errors[None]
    with pytest.raises(ValueError, match="rows must be >= 1, got 0"):
        spectral_moments(H, generator=torch.Generator(), rows=0)


def test_too_few_products_are_refused(operator):
    with pytest.raises(ValueError, match="matvecs must be >= 6, two for each of three stages"):
        trace(operator([1.0]), generator=_rng(), matvecs=5)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_quadrature_moments_are_unbiased(operator, power):
    H = operator(SEMICIRCLE[:200])
    exact = sum(x**power for x in SEMICIRCLE[:200]) / 200
    found = [spectral_density(H, generator=_rng(s), steps=8).moment(power).value for s in range(40)]
    assert abs(_z(found, exact)) < 4


def test_the_density_integrates_to_one_within_its_grid(operator):
    curve = spectral_density(operator(DECAYING), generator=_rng()).curve(points=2000)
    assert torch.trapezoid(curve.density, curve.grid) == pytest.approx(1, abs=1e-3)
    assert (curve.stderr >= 0).all()


def test_the_density_agrees_with_a_smoothed_histogram(operator):
    H = operator(SEMICIRCLE)
    curve = spectral_density(H, generator=_rng(), probes=30, steps=60).curve(width=0.1)
    eigenvalues = torch.tensor(SEMICIRCLE, dtype=torch.float64)
    z = (curve.grid[:, None] - eigenvalues) / 0.1
    exact = torch.exp(-0.5 * z**2).mean(dim=1) / (0.1 * math.sqrt(2 * math.pi))
    assert ((curve.density - exact).abs() <= 5 * curve.stderr + 1e-3).all()


def test_counts_are_unbiased_and_within_their_bounds(operator):
    values = [50.0, 40.0, 30.0] + [0.1 * x for x in SEMICIRCLE] + [-5.0] * 4
    H = operator(values)
    found = [spectral_density(H, generator=_rng(s), steps=20) for s in range(40)]
    above = [f.count_above(10) for f in found]
    below = [f.count_below(-1) for f in found]
    assert abs(_z([c.value for c in above], 3)) < 4
    assert abs(_z([c.value for c in below], 4)) < 4
    for c in above + below:
        assert c.lower <= c.value <= c.upper
    assert abs(_z([f.negative(0.05).value for f in found], 4)) < 4
    assert abs(_z([f.outlying().value for f in found], 3)) < 4


def test_quadrature_bounds_hold_for_the_measure_of_each_probe(prescribed, operator):
    values = SEMICIRCLE[:100]
    _, Q = prescribed(values)
    H = operator(values)
    found = spectral_density(H, generator=_rng(5), probes=2, steps=6)
    rng, measures = _rng(5), []
    for _ in range(2):
        v = torch.randn(100, generator=rng, dtype=torch.float64)
        measures.append((Q.T @ v).square() / v.square().sum())
    eigenvalues = torch.tensor(values, dtype=torch.float64)
    for threshold in torch.linspace(-1.1, 1.1, 23).tolist():
        exact = 100 * sum(m[eigenvalues < threshold].sum().item() for m in measures) / 2
        count = found.count_below(threshold)
        assert count.lower - 1e-9 <= exact <= count.upper + 1e-9


def test_an_early_end_is_exact(operator):
    found = spectral_density(operator([2.0] * 10 + [1.0] * 10), generator=_rng(), probes=2)
    assert found.exact.all()
    assert found.matvecs == 4
    count = found.count_above(1.5)
    assert count.lower == count.upper == count.value


def test_one_eigenvalue_everywhere_still_has_a_curve(operator):
    curve = spectral_density(operator([2.0] * 5), generator=_rng()).curve()
    assert curve.grid[curve.density.argmax()] == pytest.approx(2, abs=curve.width)


def test_density_arguments_out_of_range_are_refused(operator):
    with pytest.raises(ValueError, match="probes must be >= 2, or there is no error band, got 1"):
        spectral_density(operator([1.0]), generator=_rng(), probes=1)
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        spectral_density(operator([1.0]), generator=_rng(), steps=0)
