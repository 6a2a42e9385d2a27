"""Joint verification: what is false among many that hold is located, and alone rejected."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import eqtoolbox as eq
from eqtoolbox.weights.families.diagonal import Rescale, Scale
from eqtoolbox.weights.families.translation import Translation
from eqtoolbox.weights.forms.diagonal import leg
from eqtoolbox.weights.forms.linear import shift
from eqtoolbox.weights.parameter import ContinuousSymmetry, ParameterSymmetry
from eqtoolbox.weights.search import point
from eqtoolbox.weights.search.equivariances import equivariances
from eqtoolbox.weights.search.joint import Candidate, candidate, judged_together
from eqtoolbox.weights.search.problem import Problem, posed
from eqtoolbox.weights.search.slopes import Slopes
from eqtoolbox.weights.search.verification import gradients

Map = Callable[[Tensor], Tensor]
WIDTH, DEPTH = 6, 12
EVERY = torch.arange(WIDTH)
RELU: list[Map] = [torch.relu] * (DEPTH - 1)


class Deep(nn.Module):
    """Linear layers with a map of its own after each but the last."""

    def __init__(self, maps: Sequence[Map]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = maps
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(3)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        for layer, each in zip(self.layers, [*self.maps, nn.Identity()], strict=True):
            x = each(layer(x))
        return x


def pair(k: int, **options: float) -> Rescale:
    """Layer k times e^s, the next one's columns times e^-s."""
    ones = torch.ones(WIDTH, dtype=torch.float64)
    legs = [
        leg(f"layers.{k}.weight", (WIDTH, WIDTH), 0, EVERY, EVERY, ones),
        leg(f"layers.{k}.bias", (WIDTH,), 0, EVERY, EVERY, ones),
        leg(f"layers.{k + 1}.weight", (WIDTH, WIDTH), 1, EVERY, EVERY, -ones),
    ]
    return Rescale(name=str(k), dimension=WIDTH, legs=tuple(legs), **options)


def problem(maps: Sequence[Map], dtype: torch.dtype) -> Problem:
    model = Deep(maps).to(dtype)
    x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = torch.arange(32) % WIDTH

    def loss(params: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, params, (x,)), y)

    own = dict(model.named_parameters())
    return posed(loss, own, None, None, dtype if dtype == torch.float64 else None)


def slopes_of(posed: Problem, symmetries: Sequence[ContinuousSymmetry]) -> Slopes:
    slopes = Slopes(symmetries)
    gradients(posed.loss, posed.point, slopes.add)
    return slopes


def judged(posed: Problem, symmetries: Sequence[ContinuousSymmetry]) -> list[str]:
    slopes = slopes_of(posed, symmetries)
    candidates = [candidate(posed, slopes, k) for k in range(len(symmetries))]
    return [s.status for s in judged_together(posed, candidates)[0]]


PAIRS = [pair(k) for k in range(DEPTH - 1)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("false", [None, 0, 5, DEPTH - 2])
def test_a_false_member_among_many_is_alone_rejected(dtype: torch.dtype, false: int | None) -> None:
    maps = list(RELU)
    if false is not None:
        maps[false] = F.gelu
    expected = ["broken" if k == false else "verified" for k in range(DEPTH - 1)]
    assert judged(problem(maps, dtype), PAIRS) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_shift_from_flat_to_flat_is_located_by_the_slope_half_way(dtype: torch.dtype) -> None:
    def bent(x: Tensor) -> Tensor:
        return torch.cat([F.hardtanh(x[:, :1] + 100), torch.relu(x[:, 1:])], 1)

    calls = []
    plain = problem([bent, *RELU[1:]], dtype)

    def counted(params: dict[str, Tensor]) -> Tensor:
        calls.append(params)
        return plain.loss(params)

    asked, slopes = replace(plain, loss=counted), slopes_of(plain, PAIRS[1:])
    found = [candidate(asked, slopes, k) for k in range(DEPTH - 2)]
    moves = shift("layers.0.bias", (WIDTH,), 0, torch.tensor([0, *[-1] * (WIDTH - 1)]), 1)
    flat = Translation(name="0", dimension=1, shifts=(moves,))
    found.insert(4, Candidate(flat, torch.tensor([-200.0], dtype=dtype), residual=0.0))
    judged = [s.status for s in judged_together(asked, found)[0]]
    assert judged == ["broken" if k == 4 else "verified" for k in range(DEPTH - 1)]
    assert len(calls) <= 5  # all, half way, the others forth and back, and their slopes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_order_1_says_which_unit_is_broken(dtype: torch.dtype) -> None:
    def one(x: Tensor) -> Tensor:
        return torch.cat([torch.relu(x[:, :4]), torch.tanh(x[:, 4:5]), torch.relu(x[:, 5:])], 1)

    maps = [*RELU[:3], one, *RELU[4:]]
    slopes = slopes_of(problem(maps, dtype), PAIRS)
    sizes = slopes.of(3).abs()
    broken = float(sizes[4])
    sizes[4] = 0
    assert int(slopes.of(3).abs().argmax()) == 4
    assert broken > 1e3 * float(sizes.max())


def test_an_equivariance_that_an_epsilon_breaks_costs_the_others_no_evaluations() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))
    x, y, asked = torch.randn(8, 4).double(), torch.arange(8) % 3, []

    def run(params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        asked.append(params)
        output = functional_call(model, params, (x,))
        return output, F.cross_entropy(output, y)

    own = dict(model.named_parameters())
    there = posed(lambda p: run(p)[1], own, None, run, torch.float64)
    asked.clear()
    found = {s.family: s.status for s in equivariances(there)}
    exact = dict.fromkeys(("head_scale", "head_shift", "head_rotation"), "verified")
    assert found == {"homogeneity": "approximate", **exact}
    assert len(asked) == 6  # moved: it and the others; slopes, and those by epsilon; two orders


class Normalised(nn.Module):
    """Two normalised layers, and a pair around a map that is almost homogeneous."""

    def __init__(self, eps: float, bend: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.eps, self.bend = eps, bend
        self.a, self.b = nn.Linear(5, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.c, self.d = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            x = torch.tanh(F.layer_norm(layer(x), (WIDTH,), eps=self.eps))
        h = self.c(x)
        return self.d(torch.relu(h) + self.bend * torch.sin(h))


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 5, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def whole(name: str, shape: tuple[int, int]) -> Scale:
    every = torch.arange(shape[0])
    rates = torch.ones(shape[0], dtype=torch.float64)
    legs = (leg(f"{name}.weight", shape, 0, every, 0 * every, rates),)
    return Scale(name=name, dimension=1, legs=legs, tolerance=3e-2)


def normalised(bend: float, penalty: float) -> dict[str, str]:
    """The statuses of both scales and of the pair."""
    model = Normalised(1e-2, bend).double()
    x, y = data()

    def loss(params: dict[str, Tensor]) -> Tensor:
        fit = F.cross_entropy(functional_call(model, params, (x.double(),)), y)
        return fit + penalty * params["a.weight"].square().sum()

    given = posed(loss, dict(model.named_parameters()), None, None, torch.float64)
    ones = torch.ones(WIDTH, dtype=torch.float64)
    legs = (
        leg("c.weight", (WIDTH, WIDTH), 0, EVERY, EVERY, ones),
        leg("c.bias", (WIDTH,), 0, EVERY, EVERY, ones),
        leg("d.weight", (3, WIDTH), 1, EVERY, EVERY, -ones),
    )
    around = Rescale(name="c", dimension=WIDTH, legs=legs)
    every = [whole("a", (WIDTH, 5)), whole("b", (WIDTH, WIDTH)), around]
    return dict(zip("abc", judged(given, every), strict=True))


HOLD = {"a": "approximate", "b": "approximate", "c": "verified"}


@pytest.mark.parametrize("large", [False, True])
def test_what_an_epsilon_leaves_masks_nothing(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bend and the penalty change the loss by less than the epsilon does."""
    for kept in ("_KEPT_MODEL", "_KEPT_TENSOR") if large else ():
        monkeypatch.setattr(point, kept, 0)
    assert normalised(bend=0.0, penalty=0.0) == HOLD
    assert normalised(bend=1e-7, penalty=0.0) == {**HOLD, "c": "broken"}
    assert normalised(bend=0.0, penalty=1e-7) == {**HOLD, "a": "broken"}


def units_of(symmetry: ParameterSymmetry) -> list[int]:
    """The rows of the first weight that it moves."""
    assert isinstance(symmetry, Rescale)
    return sorted(symmetry.legs[0].positions.tolist())


@pytest.mark.parametrize("dead", [False, True])
def test_a_dead_unit_is_listed_as_inert_and_not_as_verified(dead: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    if dead:
        with torch.no_grad():
            model[0].weight[2] = 0.0  # type: ignore[operator, index]
            model[0].bias[2] = -2.0  # type: ignore[operator, index]
    found = eq.weights.discover(model, data())
    rescale = [(s.status, s.dimension, units_of(s)) for s in found if s.family == "rescale"]
    living = [0, 1, 3, 4, 5] if dead else [*range(6)]
    assert rescale == [("verified", len(living), living), ("inert", 1, [2])][: 1 + dead]
    listed = [note for note in found.notes if "units 2 of rescale 0-2" in note]
    assert len(listed) == dead and any("inert" in note for note in found.notes) == dead
