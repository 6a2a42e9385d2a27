"""The point is the same at each reading, within a scope and outside, kept or made anew."""

import pytest
import torch
from torch import nn

from eqtoolbox.weights.discovery import discover
from eqtoolbox.weights.search import point
from eqtoolbox.weights.search.point import Point

LARGE = 2**14 + 8  # entries that are not kept in a large model


@pytest.mark.parametrize("kept", [0, 2**22])
@pytest.mark.parametrize(
    "make", [torch.zeros, torch.ones, torch.randn], ids=["zeros", "ones", "randn"]
)
def test_a_point_is_the_same_in_its_scope(
    kept: int, make: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(point, "_KEPT_MODEL", kept)
    given = {"large": make(LARGE), "small": make(7)}
    at = Point(given, torch.float64)
    outside = dict(at)
    with at.scope():
        inside = dict(at)
    assert all(torch.equal(outside[n], inside[n]) for n in given)
    other = Point(given, torch.float64, seed=9)
    assert not any(torch.equal(outside[n], other[n]) for n in given)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_large_model_has_the_symmetries_of_a_small_one(
    normalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same model, with tensors that are made anew each time; epsilons explain as much."""
    torch.manual_seed(0)
    between = [nn.LayerNorm(100)] if normalised else []
    model = nn.Sequential(nn.Linear(200, 100), *between, nn.ReLU(), nn.Linear(100, 3))
    batch = (torch.randn(60, 200), torch.arange(60) % 3)  # no unit is inert
    small = discover(model, batch)
    monkeypatch.setattr(point, "_KEPT_MODEL", 0)
    large = discover(model, batch)
    assert [(s.family, s.name, s.dimension, s.status) for s in large] == [
        (s.family, s.name, s.dimension, s.status) for s in small
    ]
    assert max(s.residual for s in large if s.status == "verified") < 1e-13
    near = [(a, b) for a, b in zip(small, large, strict=True) if a.status == "approximate"]
    assert {a.family for a, _ in near} == ({"scale", "homogeneity"} if normalised else set())
    for a, b in near:
        assert a.epsilon > 0 and b.epsilon == pytest.approx(b.residual, rel=1e-6)
