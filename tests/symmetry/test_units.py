"""Distances between units and reflections against brute force, on units owned along two axes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.weights.discovery import discover
from eqtoolbox.weights.families.discrete import Permutation, SignFlip
from eqtoolbox.weights.orbit import units
from eqtoolbox.weights.orbit.approach import approaches
from eqtoolbox.weights.orbit.reflection import Reflection
from eqtoolbox.weights.parameter import DiscreteSymmetry
from tests.conftest import mlp
from tests.symmetry.architectures import Block, Patches, Recurrent

Params = dict[str, Tensor]
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(6, 5, 4, 3, activation=nn.Tanh), (12, 6)),
    "lstm": (lambda: Recurrent(nn.LSTM), (12, 4, 6)),
    "residual": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 1, 1), Block(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 3),
        ),
        (12, 3, 6, 6),
    ),
    "transformer": (Patches, (12, 3, 8, 8)),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def found(request: pytest.FixtureRequest) -> tuple[Params, list[DiscreteSymmetry]]:
    make, shape = CASES[request.param]
    torch.manual_seed(0)
    model = make()
    batch = (torch.randn(shape), torch.randint(0, 3, shape[:1]))
    params = {n: torch.randn(p.shape).double() for n, p in model.named_parameters()}
    discrete = [s for s in discover(model, batch) if isinstance(s, DiscreteSymmetry)]
    assert any(isinstance(s, Permutation) for s in discrete)
    return params, discrete


def inner(a: Params, b: Params) -> float:
    return sum(float((x * b[n]).sum()) for n, x in a.items())


def minus(a: Params, b: Params) -> Params:
    return {n: x - b[n] for n, x in a.items()}


def reflection(symmetry: DiscreteSymmetry, params: Params, i: int, j: int) -> Reflection:
    if isinstance(symmetry, Permutation):
        move = partial(symmetry.exchange, first=torch.tensor([i]), second=torch.tensor([j]))
    else:
        assert isinstance(symmetry, SignFlip)
        move = partial(symmetry.flipped, units=torch.tensor([i]))  # type: ignore[assignment]
    return Reflection.of(move, params, symmetry.names, "")


def test_gaps_are_the_distances_that_exchanging_the_units_measures(found: tuple) -> None:
    params, discrete = found
    for symmetry in discrete:
        if not isinstance(symmetry, Permutation):
            continue
        gap, sizes = units.gaps(symmetry, params), units.squares(symmetry, params).values()
        size = torch.stack(list(sizes)).sum(0)
        for i in range(units.count(symmetry)):
            for j in range(i + 1, units.count(symmetry)):
                moved = reflection(symmetry, params, i, j)(params)
                between = minus(params, moved)
                expected = inner(between, between) / 2 / float(size[i] + size[j])
                assert float(gap[i, j]) == pytest.approx(expected, rel=1e-9)


def test_a_reflection_splits_the_space_in_two_orthogonal_halves(found: tuple) -> None:
    params, discrete = found
    for symmetry in discrete:
        t = reflection(symmetry, params, 0, 1)
        twice = t(t(params))
        assert all(torch.equal(twice[n], p) for n, p in params.items())
        fixed = t.symmetric(params)
        assert all(torch.allclose(t(fixed)[n], p) for n, p in fixed.items())
        rest = t.embed(t.coordinates(params), params)
        assert all(torch.allclose(fixed[n] + rest[n], p) for n, p in params.items())
        assert abs(inner(fixed, rest)) < 1e-9 * inner(params, params)
        coordinates = t.coordinates(params)
        assert inner(coordinates, coordinates) == pytest.approx(inner(rest, rest))
        flipped = t(rest)
        assert all(torch.allclose(flipped[n], -x) for n, x in rest.items())
        assert max(x.abs().max() for x in rest.values()) > 1e-3, "it reflects something"


def test_a_reflection_along_axes_has_the_entries_of_the_map_itself(found: tuple) -> None:
    params, discrete = found
    for symmetry in discrete:
        whole = reflection(symmetry, params, 0, 1)
        if isinstance(symmetry, Permutation):
            order = symmetry.exchanged(torch.tensor([0]), torch.tensor([1]))
            moves = symmetry.moves(params, order)
        else:
            assert isinstance(symmetry, SignFlip)
            moves = symmetry.moves(params, torch.tensor([0]))
        along = Reflection.along(whole.move, moves, params, "")
        assert list(along.entries) == list(whole.entries)
        for name, one in whole.entries.items():
            two = along.entries[name]
            assert one.partner == two.partner == name
            assert torch.equal(one.first, two.first)
            assert torch.equal(one.second, two.second)
            assert torch.equal(one.weight, two.weight)


def test_distances_are_those_of_the_reflections(found: tuple) -> None:
    params, discrete = found
    for symmetry in discrete:
        near, _ = approaches(symmetry, params, 3, 0.0)
        for approach in near:
            z = approach.reflection.coordinates(params)
            if isinstance(symmetry, Permutation):
                i, j = (int(word) for word in approach.label.split()[-3::2])
                sizes = units.sizes(symmetry, params, torch.tensor([i, j])).sum() / 2
            else:
                assert isinstance(symmetry, SignFlip)
                sizes = units.sizes(symmetry, params).mean()
            expected = (inner(z, z) / float(sizes)) ** 0.5
            assert approach.distance == pytest.approx(expected, rel=1e-9)


def twins(count: int) -> tuple[Permutation, Params]:
    """Units of a float32 layer, `count` pairs of which differ by one rounding or a few."""
    torch.manual_seed(0)
    model = mlp(30, 64, 3)
    batch = (torch.randn(12, 30), torch.randint(0, 3, (12,)))
    (symmetry,) = [s for s in discover(model, batch) if isinstance(s, Permutation)]
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    for k in range(count):
        for name, axis in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
            rows = params[name].movedim(axis, 0)
            rows[2 * k + 1] = rows[2 * k] * (1 + 1e-6 * (k + 1))
    return symmetry, params


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_coarse_look_first_misses_none_of_the_nearest(count: int) -> None:
    symmetry, params = twins(count)
    gap = units.gaps(symmetry, params)
    i, j = torch.triu_indices(64, 64, 1)
    every = gap[i, j]
    nearest, inside = approaches(symmetry, params, 4, limit=3.5e-6 / 2**0.5)
    assert inside == min(count, 3)
    expected = every.topk(4, largest=False)
    for approach, value, k in zip(nearest, *expected, strict=True):
        assert approach.label == f"0-2 units {int(i[k])} and {int(j[k])}"
        assert approach.distance == pytest.approx(float(value) ** 0.5, rel=1e-2, abs=1e-7)


def test_a_coarse_look_that_claims_too_small_an_error_misses_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control of the test above."""
    symmetry, params = twins(5)
    gap, error = units.coarse_gaps(symmetry, params)
    assert 1e-6 < error < 1e-3
    noise = torch.randn(gap.shape, generator=torch.Generator().manual_seed(0)).abs()
    monkeypatch.setattr(units, "coarse_gaps", lambda *_: (gap + 10 * error * noise, 0.0))
    assert approaches(symmetry, params, 1, limit=3.5e-6 / 2**0.5)[1] < 3


def test_the_nearest_of_all_pairs_is_found_and_not_only_of_neighbours() -> None:
    torch.manual_seed(0)
    model = mlp(6, 12, 3)
    batch = (torch.randn(12, 6), torch.randint(0, 3, (12,)))
    (symmetry,) = [s for s in discover(model, batch) if isinstance(s, Permutation)]
    params = {n: p.detach().double() for n, p in model.named_parameters()}
    for unit, amount in ((9, 1e-3), (4, 1e-2)):
        for name, axis in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
            rows = params[name].movedim(axis, 0)
            rows[unit] = rows[1] * (1 + amount)
    nearest, inside = approaches(symmetry, params, 3, limit=2e-3)
    labels = [a.reflection.label for a in nearest]
    assert labels == ["0-2 units 1 and 9", "0-2 units 4 and 9", "0-2 units 1 and 4"]
    assert nearest[0].distance == pytest.approx(1e-3 / 2**0.5, rel=1e-2)
    assert inside == 1


def test_the_family_must_be_known() -> None:
    class Other(DiscreteSymmetry):
        family = "other"
        names = ()

        def element(self, params: Params, which: int) -> Params:  # type: ignore[override]
            return params

        def draw(self, generator: torch.Generator) -> Any:
            return lambda params: params

    with pytest.raises(TypeError, match="expected a Permutation or SignFlip, got Other"):
        approaches(Other(name="x", dimension=1), {}, 1, 0.1)
