"""The penalty: its number is the violation, its gradient mends it, and a collapse is said."""

import copy
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.demos.digits import load_digits
from eqtoolbox.demos.robot import MIRROR, PlainArm, load
from eqtoolbox.demos.rotated import TURNS
from eqtoolbox.enforce import penalties, penalty
from eqtoolbox.probes import Curvature
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry import Equivariance, equivariance_error
from eqtoolbox.symmetry.actions.action import flip, quarter_turn, trivial
from eqtoolbox.symmetry.actions.linear import vectors
from eqtoolbox.symmetry.each import Each
from eqtoolbox.symmetry.groups import SO3, Cyclic, Dihedral, Flip, Orthogonal, Sign

MIRRORED = Equivariance(Flip(), flip, flip)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 9)).double()


def image(x: Tensor) -> Tensor:
    return x.view(-1, 1, 3, 3)


def number(x: Tensor) -> float:
    return x.detach().item()


class Pictures(nn.Module):
    """Pictures in, pictures out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return image(self.inner(x))


def pictures(count: int = 5) -> Tensor:
    return torch.randn(count, 1, 3, 3, dtype=torch.float64)


# -- the number ----------------------------------------------------------------------------------


def test_for_two_elements_it_is_the_square_of_the_equivariance_error() -> None:
    model, x = Pictures(), pictures()
    found = penalty(MIRRORED, 0.7)(model, x)
    error = equivariance_error(model, x, MIRRORED).relative_error
    assert number(found) == pytest.approx(0.7 * error**2, rel=1e-12)
    assert number(found) == number(penalty(MIRRORED, 0.7)(model, x, model(x)))


def test_in_the_mean_over_many_elements_it_is_that_of_the_group() -> None:
    claim = Equivariance(Cyclic(4), quarter_turn, quarter_turn)
    model, x = Pictures(), pictures()
    y, terms = model(x), []
    for g in (1, 2, 3):
        moved, expected = model(quarter_turn(g, x)), quarter_turn(g, y)
        terms.append(number((moved - expected).square().sum() / expected.square().sum()))
    found = number(penalty(claim, 1.0, elements=300)(model, x))
    spread = torch.tensor(terms).std(correction=0) / 300**0.5
    assert abs(found - sum(terms) / 3) < 4 * float(spread)
    assert found != pytest.approx(sum(terms) / 4, rel=0.1), "the identity is not among them"


def test_the_norm_is_held_so_that_scale_is_no_way_out() -> None:
    model, x = Pictures(), pictures()
    scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    found = penalty(MIRRORED, 1.0)(lambda z: scale * model(z), x)
    (slope,) = torch.autograd.grad(found, [scale])
    assert number(slope) == pytest.approx(2 * number(found)), "of c^2 a / held, not of a / held"


def test_an_equivariant_model_pays_nothing_and_another_does() -> None:
    x = pictures()
    assert number(penalty(MIRRORED, 10.0)(lambda z: z.square().sin(), x)) < 1e-25
    assert number(penalty(MIRRORED, 10.0)(lambda z: z.cumsum(-1), x)) > 1.0


def test_outputs_of_zero_cost_nothing() -> None:
    assert number(penalty(MIRRORED, 1.0)(lambda z: 0.0 * z, pictures())) == 0.0


# -- what it takes -------------------------------------------------------------------------------


@dataclass
class Found:
    energy: Tensor
    force: Tensor


class Springs(nn.Module):
    """Positions and charges in, an energy and forces out; `wrong` breaks the forces."""

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.wrong = nn.Parameter(torch.tensor(wrong, dtype=torch.float64))

    def forward(self, positions: Tensor, charges: Tensor) -> Found:
        radii = positions.square().sum(-1)
        force = -positions * charges[..., None]
        push = self.wrong * torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        return Found(energy=(radii * charges).sum(1), force=force + push)


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("group", [SO3(), Orthogonal(3)])
def test_structured_batches_and_groups_without_end(by_name: bool, group: Any) -> None:
    moves = {"positions": vectors, "charges": trivial}
    inputs = {
        "positions": torch.randn(4, 5, 3, dtype=torch.float64),
        "charges": torch.rand(4, 5, dtype=torch.float64),
    }
    action: Any = Each(moves) if by_name else Each(tuple(moves.values()))
    given: Any = inputs if by_name else tuple(inputs.values())
    claim = Equivariance(group, action, Each({"energy": trivial, "force": vectors}))
    right, wrong = Springs(), Springs(0.5)
    outputs = wrong(**inputs)
    assert number(penalty(claim, 1.0)(right, given)) < 1e-25
    found = penalty(claim, 1.0, elements=3)(wrong, given, outputs)
    assert number(found) > 1e-3
    found.backward()
    assert number(wrong.wrong.grad) > 0.0


def test_graphs_are_one_sample_and_their_nodes_are_watched() -> None:
    claim = Equivariance(SO3(), Each({"x": vectors, "batch": trivial}), vectors, rows="parts")
    graph = {"x": torch.randn(6, 3, dtype=torch.float64), "batch": torch.tensor([0, 0, 1, 1, 1, 2])}
    mean = lambda b: b["x"] - torch.zeros_like(b["x"]).index_add_(0, b["batch"], b["x"])
    held = penalty(claim, 1.0)
    assert number(held(mean, graph)) < 1e-25 and held.share == 1.0
    assert number(held(lambda b: mean(b).abs(), graph)) > 1e-3


@pytest.mark.parametrize(
    ("group", "action"),
    [(Cyclic(4), quarter_turn), (Dihedral(4), lambda g, x: _dihedral(g, x)), (Flip(), flip)],
)
def test_finite_groups(group: Any, action: Callable[[Any, Any], Any]) -> None:
    claim = Equivariance(group, action, trivial)
    assert number(penalty(claim, 1.0)(lambda x: x.sum((1, 2, 3))[:, None], pictures())) < 1e-25
    assert number(penalty(claim, 1.0, elements=4)(lambda x: x[:, 0, 0], pictures())) > 1e-3


def _dihedral(g: tuple[int, bool], x: Tensor) -> Tensor:
    return quarter_turn(g[0], flip(g[1], x))


# -- training ------------------------------------------------------------------------------------


def test_in_regression_it_lowers_the_equivariance_error() -> None:
    x, y = (t[:64] for t in load().train)
    errors = []
    for weight in (1e-9, 10.0):
        torch.manual_seed(0)
        model, held = PlainArm(16), penalty(MIRROR, weight)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(120):
            outputs = model(x)
            optimizer.zero_grad()
            (F.mse_loss(outputs, y) + held(model, x, outputs)).backward()
            optimizer.step()
        errors.append(equivariance_error(model, x, MIRROR).relative_error)
        assert held.collapsed_at is None
    assert errors[1] < 0.7 * errors[0]


def classified(
    weight: float, steps: int, monitor: Any = None, seed: int = 0
) -> tuple[Any, list[str]]:
    """Digits, in a few steps of a small convolutional network."""
    x, y = load_digits().train
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    held = penalty(TURNS, weight, monitor=monitor)
    draw = torch.Generator().manual_seed(seed + 9)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(steps):
            rows = torch.randint(len(x), (64,), generator=draw)
            outputs = model(x[rows])
            loss = F.cross_entropy(outputs, y[rows]) + held(model, x[rows], outputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return held, [str(w.message) for w in said]


def test_a_classifier_collapses_at_weight_10_and_that_is_said_once_within_20_steps() -> None:
    held, said = classified(10.0, 25)
    assert held.collapsed_at is not None and held.collapsed_at <= 20
    assert len(said) == 1 and "the outputs collapse" in said[0] and "averaged" in said[0]
    assert "collapsed at call" in repr(held)
    held, said = classified(0.1, 25)  # the twin that must stay silent
    assert held.collapsed_at is None and said == [] and held.share > 0.5


@pytest.mark.parametrize("seed", [1, 3, 6])
def test_a_collapse_to_a_large_constant_is_told_though_the_variance_falls_slowly(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, _ = classified(10.0, 20, seed=seed)
    assert held.collapsed_at is not None and held.collapsed_at < 20
    monkeypatch.setattr(penalties, "STILL", 0.0)  # by its fall alone it is not seen by then
    held, _ = classified(10.0, 20, seed=seed)
    assert held.collapsed_at is None


def test_values_with_a_large_mean_are_no_collapse() -> None:
    """Outputs that begin with this mean vary little beside it, and do not fall."""
    held = penalty(MIRRORED, 1.0)
    for scale in (1.0, 2.0, 0.8):
        held(lambda x, scale=scale: 100 + scale * x.sin(), pictures())
    assert held.variance < 1e-4 * 100**2 and held.collapsed_at is None


def test_a_run_is_told_of_the_collapse() -> None:
    model, sink = nn.Linear(2, 2), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(model, optimizer, probes=[Curvature()], sinks=[sink]) as monitor:
        held = penalty(MIRRORED, 1.0, monitor=monitor)
        held(torch.sin, pictures())
        with pytest.warns(RuntimeWarning, match="outputs collapse"):
            held(lambda x: 1e-3 * x.sin() + 1.0, pictures())
    assert any("act.penalty" in str(e) and "collapse" in str(e) for e in sink.events)


def test_one_sample_has_no_variance_and_raises_no_alarm() -> None:
    held = penalty(MIRRORED, 1.0)
    held(torch.sin, pictures(1))
    assert math.isnan(held.share) and held.calls == 0


# -- neutrality, randomness, checkpoints ---------------------------------------------------------


def test_no_global_stream_is_drawn_from_and_the_seed_decides() -> None:
    claim = Equivariance(Cyclic(4), quarter_turn, trivial)
    x, state = pictures(), torch.get_rng_state()
    follow = lambda seed: [
        number(held(lambda z: z[:, 0, 0], x)) for held in [penalty(claim, 1.0, seed=seed)] * 8
    ]
    assert follow(1) == follow(1) != follow(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_resumed_run_draws_the_same_elements_and_knows_the_start() -> None:
    claim, x = Equivariance(Cyclic(4), quarter_turn, trivial), pictures()
    call = lambda held: number(held(lambda z: z[:, 0, 0], x))
    held = penalty(claim, 1.0)
    for _ in range(3):
        call(held)
    state = copy.deepcopy(held.state_dict())
    expected = [call(held) for _ in range(8)]
    again, other = penalty(claim, 1.0, seed=5), penalty(claim, 1.0, seed=5)
    again.load_state_dict(state)
    assert [call(again) for _ in range(8)] == expected and again.start == held.start
    assert [call(other) for _ in range(8)] != expected  # the twin that must fail
    with pytest.raises(KeyError, match="calls"):
        again.load_state_dict({"start": 1.0, "collapsed_at": None})


def test_a_monitor_that_evaluates_the_loss_again_changes_nothing_of_it() -> None:
    found = []
    for watched in (False, True):
        model, held = Pictures(), penalty(Equivariance(Cyclic(4), quarter_turn, quarter_turn), 1.0)
        torch.manual_seed(3)
        x, optimizer = pictures(), torch.optim.SGD(model.parameters(), lr=0.05)
        loss_fn: Any = lambda m, b, held=held: m(b).square().mean() + held(m, b)
        monitor, sink = None, MemorySink()
        if watched:
            probes = [Curvature(k=1)]
            monitor = eq.attach(
                model, optimizer, probes=probes, schedule=1, budget=None, sinks=[sink],
                on_error="raise",
            )  # fmt: skip
            loss_fn = monitor.loss(loss_fn)
        for _ in range(5):
            optimizer.zero_grad()
            loss_fn(model, x).backward()
            optimizer.step()
        if monitor is not None:
            monitor.close()
            cosine = [r.value for r in sink.records if r.name == "monitor/closure_grad_cos"]
            assert cosine and cosine[0] > 1 - 1e-9, "the same elements are drawn again"
        state = held.state_dict()
        found.append((list(model.parameters()), state.pop("generator"), state, held.variance))
    one, other = found
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    assert torch.equal(one[1], other[1]) and one[2:] == other[2:]


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"weight": 0.0}, "weight must be a positive number"),
        ({"elements": 0}, "elements must be an integer >= 1"),
        ({"claim": quarter_turn}, "claim must be an Equivariance"),
        ({"monitor": 3}, "monitor must be a Monitor or None"),
        ({"claim": Equivariance(Sign(), trivial, trivial)}, "moves neither inputs nor outputs"),
    ],
)
def test_arguments_are_checked(given: dict[str, Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        penalty(**({"claim": MIRRORED, "weight": 1.0} | given))


def test_what_does_not_fit_is_refused_before_anything_is_drawn() -> None:
    still = Equivariance(Cyclic(4), lambda g, x: x, lambda g, y: y)
    with pytest.raises(ValueError, match="moves nothing of this batch"):
        penalty(still, 1.0)(torch.sin, pictures())
    wrong = Equivariance(Cyclic(3), quarter_turn, quarter_turn)
    with pytest.raises(ValueError, match="does not belong to it"):
        penalty(wrong, 1.0)(torch.sin, pictures())
    held = penalty(MIRRORED, 1.0)
    stream = held.state_dict()["generator"]
    for outputs, match in (({"a": "b"}, "outputs must be those"), (pictures(3), "batch size")):
        with pytest.raises((TypeError, ValueError), match=match):
            held(torch.sin, pictures(), outputs)
    assert torch.equal(stream, held.state_dict()["generator"])


def test_it_says_what_it_costs() -> None:
    counted = itertools.count()

    class Counted(Pictures):
        def forward(self, x: Tensor) -> Tensor:
            next(counted)
            return super().forward(x)

    model, x = Counted(), pictures()
    held = penalty(MIRRORED, 1.0, elements=3)
    assert "weight 1: 3 forwards and backward a call" in repr(held)
    outputs = model(x)
    held(model, x, outputs)
    assert next(counted) == 1 + 3
    held(model, x)
    assert next(counted) == 1 + 3 + 1 + 4
