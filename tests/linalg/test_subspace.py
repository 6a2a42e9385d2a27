"""Laws of energy shares and principal angles."""

import math

import pytest
import torch

from eqtoolbox.linalg import energy_share, principal_angles


def _vectors(*columns, dtype=torch.float64):
    return [{"a": torch.tensor(c[:1], dtype=dtype), "b": torch.tensor(c[1:])} for c in columns]


X, Y, Z = _vectors([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])


def _along(*weights):
    return {n: sum(w * v[n] for w, v in zip(weights, (X, Y, Z), strict=True)) for n in X}


def test_shares_of_an_orthonormal_basis_add_to_one():
    g = _along(1.0, 2.0, 2.0)
    shares = [energy_share(g, [v]) for v in (X, Y, Z)]
    assert shares == pytest.approx([1 / 9, 4 / 9, 4 / 9])
    assert energy_share(g, [X, Y]) == pytest.approx(5 / 9)
    assert energy_share(g, [X, Y, Z]) == pytest.approx(1)


def test_share_ignores_scales_and_skewed_spanning_sets():
    g = _along(1.0, 2.0, 2.0)
    assert energy_share(_along(1e-20, 2e-20, 2e-20), [X, _along(5.0, 1.0, 0.0)]) == pytest.approx(
        energy_share(g, [X, Y])
    )


def test_the_zero_vector_has_no_share():
    assert math.isnan(energy_share(_along(0.0, 0.0, 0.0), [X]))


def test_a_random_vector_has_share_k_over_n():
    rng = torch.Generator().manual_seed(0)
    n, k = 1000, 10
    directions = [{"x": row} for row in torch.randn(k, n, generator=rng)]
    shares = [energy_share({"x": torch.randn(n, generator=rng)}, directions) for _ in range(50)]
    deviation = math.sqrt(2 * k) / n  # of a Beta(k/2, (n-k)/2) variable, k << n
    assert abs(sum(shares) / 50 - k / n) < 4 * deviation / math.sqrt(50)


def test_angles_are_those_of_a_rotation():
    angle = 0.3
    turned = [X, _along(0.0, math.cos(angle), math.sin(angle))]
    angles = principal_angles([X, Y], turned)
    assert angles.tolist() == pytest.approx([0.0, angle], abs=1e-6)
    assert principal_angles([X], [Y, Z]).tolist() == pytest.approx([math.pi / 2])
    assert principal_angles([Y, Z], [X]).tolist() == pytest.approx([math.pi / 2])


@pytest.mark.parametrize("angle", [1e-6, 1e-9])
def test_small_angles_are_accurate(angle):
    # arccos of a float64 cosine could not resolve 1e-9
    x = {"x": torch.tensor([1.0, 0.0], dtype=torch.float64)}
    y = {"x": torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)}
    assert principal_angles([x], [y]).item() == pytest.approx(angle, rel=1e-6)


def test_other_spaces_and_empty_sets_are_refused():
    with pytest.raises(ValueError, match="names of its space"):
        energy_share({"c": torch.ones(1)}, [X])
    with pytest.raises(ValueError, match="at least one vector"):
        energy_share(X, [])
    with pytest.raises(ValueError, match="not zero"):
        principal_angles([X], [_along(0.0, 0.0, 0.0)])
