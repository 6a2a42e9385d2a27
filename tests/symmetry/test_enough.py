"""Few samples of a batch show the finite changes that all of them do."""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.weights.parameter import Parameters
from eqtoolbox.weights.search import again, enough, find, point, problem, turned
from eqtoolbox.weights.search.clipped import unclipped
from eqtoolbox.weights.search.found import Found, KnownSymmetries
from eqtoolbox.weights.search.joint import Candidate
from eqtoolbox.weights.search.moves import Move
from eqtoolbox.weights.search.problem import Problem

COUNT = 24


def images() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Batch statistics of 4 values a channel and sample; biases of which some never clip."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 60, 3),
        nn.BatchNorm2d(60), nn.ReLU(), nn.Conv2d(60, 20, 1), nn.BatchNorm2d(20),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5),
    )  # fmt: skip
    with torch.no_grad():
        model[4].bias[:9] = 6.0  # type: ignore[index,union-attr,operator]
    return model, (torch.randn(COUNT, 3, 6, 6), torch.arange(COUNT) % 5)


def perceptron() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Batch statistics of one value a unit and sample."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(30, 200), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, 90), nn.ReLU(),
        nn.Linear(90, 5),
    )  # fmt: skip
    return model, (torch.randn(COUNT, 30), torch.arange(COUNT) % 5)


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """Every model is a large one; the problems that are posed."""
    seen: list[Problem] = []

    def noted(problem: Problem, samples: enough.Divisible | None) -> Problem:
        seen.append(enough.on_few(problem, samples))
        return seen[-1]

    monkeypatch.setattr(point, "_KEPT_MODEL", 0)
    monkeypatch.setattr(point, "_KEPT_TENSOR", 500)
    monkeypatch.setattr(find, "on_few", noted)
    return seen


def told(found: object) -> list[tuple[str, str, int, str]]:
    return [(s.family, s.name, s.dimension, s.status) for s in found]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("posed", "needed"), [(images, 2), (perceptron, 8)])
def test_few_samples_show_what_all_show(
    posed: Callable[[], tuple[nn.Module, tuple[Tensor, Tensor]]],
    needed: int,
    problems: list[Problem],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = posed()
    few = eq.weights.discover(model, batch)
    assert problems[0].made is not None and len(problems[0].made) == needed
    monkeypatch.setattr(find, "on_few", lambda problem, _: problem)
    assert told(eq.weights.discover(model, batch)) == told(few)
    assert max(s.residual for s in few if s.status == "verified") < 1e-10


@pytest.mark.parametrize("posed", [images, perceptron])
def test_of_a_small_model_that_takes_long_order_0_says_it_all(
    posed: Callable[[], tuple[nn.Module, tuple[Tensor, Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found is the same, by evaluations of all samples."""
    model, batch = posed()
    with torch.no_grad():
        inert, once = (0, 1) if isinstance(model[0], nn.Linear) else (9, 10)
        model[-3 if isinstance(model[0], nn.Linear) else 1].bias[inert] = -50.0  # type: ignore
        model[-3 if isinstance(model[0], nn.Linear) else 1].bias[once] = -2.0  # type: ignore
    found, calls = {}, {}
    for dear in (0, 2**40):
        monkeypatch.setattr(problem, "_DEAR", dear)
        found[dear], calls[dear] = evaluations(model, batch)
    assert told(found[0]) == told(found[2**40])
    assert any(s.status == "inert" for s in found[0])
    assert {*calls[0], *calls[2**40]} == {COUNT}


class Damped(nn.Module):
    """Outputs of the last samples alone are damped, beyond a size that no trace shows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        large = torch.from_numpy(h.detach().norm(dim=1).numpy() > 30.0)
        out: Tensor = self.b(h / (1.0 + large.to(h))[:, None])
        return out


@pytest.mark.parametrize("large", [True, False])
def test_outputs_of_few_samples_verify_no_equivariance(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "_DEAR", 0)
    if large:
        monkeypatch.setattr(point, "_KEPT_MODEL", 0)
        monkeypatch.setattr(point, "_KEPT_TENSOR", 500)
    torch.manual_seed(0)
    x = torch.randn(64, 64)
    x[32:] *= 7 + 7 * torch.rand(32, 1)
    found = eq.weights.discover(Damped(), (x, torch.randint(3, (64,))))
    assert {s.family for s in found if s.status == "verified"} >= {"head_scale", "permutation"}
    assert not [s for s in found if s.family in ("homogeneity", "rescale") and s.status != "broken"]


@pytest.mark.parametrize("shift", [0.01, 0.2])
def test_units_that_live_elsewhere_are_found_where_an_evaluation_is_dear_too(
    shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model.append(nn.Linear(64, 3))
    with torch.no_grad():
        model[0].weight[:32] = -model[0].weight[:32].abs()  # type: ignore[operator, index]
        model[0].bias[:32] = -shift  # type: ignore[index, operator]
    batch = torch.randn(256, 16).abs(), torch.randint(3, (256,))
    found = {}
    for dear in (0, 2**40):
        monkeypatch.setattr(problem, "_DEAR", dear)
        found[dear] = told(eq.weights.discover(model, batch))
    assert found[0] == found[2**40]


def late(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A loss to which the first samples contribute nothing."""
    counts = (torch.arange(len(batch[0])) >= 20).to(batch[0])
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return (counts * each).sum()


@pytest.mark.parametrize(("more", "few"), [(0.0, False), (1.0, True)])
def test_few_samples_that_show_nothing_verify_nothing(
    more: float, few: bool, problems: list[Problem]
) -> None:
    """What holds on the first samples, as anything does, has to hold on all."""
    model, batch = images()
    found = eq.weights.discover(model, batch, lambda m, b: late(m, b) + more)
    (problem,) = problems
    assert (problem.loss is not problem.whole) == few

    def wrong(params: Parameters) -> dict[str, Tensor]:
        return {"0.weight": params["0.weight"].flip(0)}

    false = Move(frozenset(["0.weight"]), True, wrong)
    assert max(problem.along([[false, false]])) > 1e-3, "though it leads back"
    assert max(problem.along([[false]])) > 1e-3
    assert problem.changes([[false]]) == problem.along([[false]])
    assert any(s.family == "permutation" and s.status == "verified" for s in found)


def test_shifts_that_clip_are_left_out_before_all_else_is_moved(
    problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same findings as where they are tried with all; without a kink all are kept."""
    dropped = []

    def noted(problem: Problem, shifts: Sequence[Candidate], beside: Sequence[Candidate]) -> Any:
        kept = unclipped(problem, shifts, beside)
        dropped.append([c.symmetry.name for c in shifts if c not in kept])
        return kept

    monkeypatch.setattr(find, "unclipped", noted)
    model, batch = images()
    first = eq.weights.discover(model, batch)
    model[2] = model[5] = nn.GELU()  # type: ignore[index,operator]
    eq.weights.discover(model, batch)
    assert dropped == [["4"], []]
    monkeypatch.setattr(find, "unclipped", lambda problem, shifts, beside: [*shifts])
    assert told(eq.weights.discover(images()[0], batch)) == told(first)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("away", [2.0, 3.0])
def test_all_else_is_moved_once_whichever_way_shifts_clip(
    seed: int, away: float, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias far from its kink reaches it one way alone, or beyond half of the way."""
    halved: list[int] = []
    asked = problem.joint_changes

    def noted(loss: Any, point: Any, moves: Sequence[Any], *given: Any) -> list[float]:
        halved.append(len(moves))
        return asked(loss, point, moves, *given)

    monkeypatch.setattr(problem, "joint_changes", noted)
    model, batch = images()
    torch.manual_seed(seed)
    with torch.no_grad():
        model[1].bias[:4] = away + torch.rand(4)  # type: ignore[index,union-attr,operator]
        model[4].bias[:9] = away + torch.rand(9)  # type: ignore[index,union-attr,operator]
    eq.weights.discover(model, batch)
    assert max(halved, default=0) <= 1, "none but what an epsilon may break"


def evaluations(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Found, list[int]]:
    """What is found, and on how many samples each evaluation was."""

    def loss(net: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        os.write(written, bytes([len(given[0])]))  # what Python holds is put back
        return F.cross_entropy(net(given[0]), given[1])

    with tempfile.TemporaryFile() as file:
        written = file.fileno()
        found = eq.weights.discover(model, batch, loss)
        file.seek(0)
        calls = [*file.read()]
    return found, calls


def test_all_samples_are_evaluated_for_trace_and_gradient_and_each_way_of_all_that_moves(
    problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = images()
    found, calls = evaluations(model, batch)
    assert calls.count(COUNT) == 4, "and outputs where what keeps them is moved"
    assert set(calls) == {COUNT, 2}
    assert any(s.family == "input_rotation" for s in found), "beside all else, in no more"
    monkeypatch.setattr(turned.TurnedSearch, "along", lambda search, moves: None)
    same, more = evaluations(model, batch)
    assert told(same) == told(found)
    assert (more.count(COUNT), len(more)) == (6, len(calls) + 4)


def test_inputs_that_do_not_turn_with_their_layer_spoil_nothing_else(
    problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = images()
    every = eq.weights.discover(model, batch)
    right = turned.Turned.loss
    monkeypatch.setattr(turned.Turned, "loss", lambda own, f, share: right(own, f, 1.01 * share))
    found = eq.weights.discover(model, batch)
    assert told(found) == [row for row in told(every) if row[0] != "input_rotation"]
    assert len(told(found)) == len(told(every)) - 1


def test_a_large_model_that_is_known_is_confirmed(
    problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "on_few", find.on_few)
    model, batch = images()
    ask, known = find.find_symmetries, []

    def of_parameters_alone(*given: Any) -> Found:
        return ask(*given[:5], None, given[6], *(known or [None]), *given[8:])

    monkeypatch.setattr(find, "find_symmetries", of_parameters_alone)
    saved = eq.weights.discover(model, batch).state_dict()
    known.append(KnownSymmetries.of(saved))
    monkeypatch.setattr(find, "_shown", None)  # no round of a search is made
    assert eq.weights.discover(model, batch).state_dict() == saved
    assert [p.pending for p in problems] == [[], []]
