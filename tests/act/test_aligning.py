"""Alignment: a model is brought back to where a random element of its group took it from."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.act import aligning
from eqtoolbox.act.aligned import Aligned, Matched
from eqtoolbox.act.assignment import Rearranged
from eqtoolbox.act.composed import collapsed, shares
from eqtoolbox.act.motion import Mixed, Path
from eqtoolbox.act.path import Barrier
from eqtoolbox.weights.families.discrete import Permutation
from tests.act.networks import loss_of
from tests.act.pairs import NAMES, Gpt, element, given, group, scattered, trained

State = Mapping[str, Tensor]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def same(a: State, b: State) -> bool:
    return all(torch.equal(x, b[n]) for n, x in a.items())


def far(a: State, b: State) -> float:
    return max(
        float((x - b[n]).norm() / (x.norm() + 1e-3)) for n, x in a.items() if x.is_floating_point()
    )


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_comes_back_from_a_random_element_of_its_group(name: str, training: bool) -> None:
    reference = trained(name)
    model = copy.deepcopy(reference)
    scattered(model, given(name), 1.0, 1)
    apart = far(state(reference), state(model))
    model.train(training)
    kept, streams = state(reference), torch.get_rng_state()
    found = eq.act.align(
        model, reference, given(name), loss_fn=loss_of, by="weights" if training else "either"
    )
    rounding = 1e-4 if name == "linear" else 1e-6  # matrices of a condition of hundreds
    assert apart > 0.3
    assert far(state(reference), state(model)) < rounding
    assert found.after < rounding * found.before
    assert found.change <= 3 * found.floor
    assert same(kept, state(reference))
    assert torch.equal(streams, torch.get_rng_state())
    assert all(m.training == training for m in model.modules())


def broken(change: Callable[[Permutation], Permutation]) -> Callable[..., Any]:
    """What finds symmetries, with one thing wrong in every permutation."""
    right = aligning.matchable

    def found(*args: Any) -> list[Any]:
        return [change(s) if isinstance(s, Permutation) else s for s in right(*args)]

    return found


def other_axis(s: Permutation) -> Permutation:
    *others, last = s.slots
    return replace(s, slots=(*others, replace(last, axis=1 - last.axis)))


@pytest.mark.parametrize(
    ("name", "change"),
    [("square", other_axis), ("residual", lambda s: replace(s, statistics=()))],
    ids=["a wrong slot axis", "statistics left behind"],
)
def test_a_wrong_group_is_refused_and_nothing_moves(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Permutation], Permutation]
) -> None:
    torch.manual_seed(0)
    square = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    reference = square if name == "square" else trained(name).eval()
    data = (torch.randn(24, 6), torch.arange(24) % 6) if name == "square" else given(name)
    model = copy.deepcopy(reference)
    scattered(model, data, 0.5, 1)
    before = state(model)
    monkeypatch.setattr(aligning, "matchable", broken(change))
    with pytest.raises(ValueError, match="nothing was changed"):
        eq.act.align(model, reference, data, by="weights", loss_fn=loss_of)
    assert same(before, state(model))
    monkeypatch.undo()
    assert eq.act.align(model, reference, data, by="weights", loss_fn=loss_of).after < 1e-6


def test_the_optimizer_goes_on_as_if_nothing_had_happened() -> None:
    """Orders and signs only: Adam commutes with them."""
    reference = trained("tanh")
    model = copy.deepcopy(reference)
    scattered(model, given("tanh"), 1.0, 2)
    losses: dict[str, list[float]] = {}
    for kind in ("untouched", "moved", "left behind"):
        own = copy.deepcopy(model)
        optimizer = torch.optim.Adam(own.parameters(), 0.02, amsgrad=True)
        steps(own, optimizer, 3)
        if kind != "untouched":
            given_too = optimizer if kind == "moved" else None
            found = eq.act.align(own, reference, given("tanh"), given_too, loss_fn=loss_of)
            assert found.after < found.before
        losses[kind] = steps(own, optimizer, 4)
    assert losses["moved"] == pytest.approx(losses["untouched"], rel=1e-5)
    assert losses["left behind"] != pytest.approx(losses["untouched"], rel=1e-3)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    made = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = loss_of(model, given("tanh"))
        loss.backward()
        optimizer.step()
        made.append(float(loss.detach()))
    return made


def test_motions_composed_are_the_same_map_with_exact_squares() -> None:
    model = trained("gpt")
    own = {n: p.detach().double() for n, p in model.named_parameters()}
    found = group(model, given("gpt"))
    motions = [*element(found, own, 0.5, 1), *element(found, own, 0.5, 2)]
    short = Path(motions=collapsed(motions))
    whole = Path(motions=motions).moved(own)
    assert len(short.motions) < len(motions)
    assert far(whole, short.moved(own)) < 1e-12
    there = next(m for m in motions if isinstance(m, Mixed))
    swap = next(m for m in motions if isinstance(m, Rearranged) and "heads" in m.symmetry.name)
    back = Mixed(form=there.form, plus=there.minus.mT, minus=there.plus.mT)
    squares = {n: x.square() for n, x in own.items()}
    twice = [there, swap, swap, back]  # of two heads: each where it was
    to_and_fro = Path(motions=twice), Path(motions=collapsed(twice))
    gone, still = (far(squares, {**squares, **p.squared(own, squares)}) for p in to_and_fro)
    assert still < 1e-12 < 0.1 < gone


def test_what_changes_places_twice_is_where_it_was() -> None:
    heads = next(s for s in group(trained("gpt"), given("gpt")) if isinstance(s, Permutation))
    swap = Rearranged(symmetry=heads, element=dict, what=torch.tensor([1, 0]))
    assert shares([swap]) == {id(heads): (2, 2)}
    assert shares([swap, swap]) == {id(heads): (0, 2)}


def test_two_trainings_meet_at_a_lower_barrier_and_a_random_order_does_not_help() -> None:
    pytest.importorskip("sklearn")
    from eqtoolbox.demos.digits import load_digits

    images, labels = load_digits().train
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
        for _ in range(150):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[:512]), labels[:512])
            loss.backward()
            optimizer.step()
        models.append(model)
    model, reference = models
    held_out = images[512:], labels[512:]
    shuffled = copy.deepcopy(model)
    scattered(shuffled, (images[:64], labels[:64]), 0.0, 1)
    found = eq.act.align(model, reference, (images[:512], labels[:512]), data=held_out)
    assert found.naive is not None and found.aligned is not None
    assert found.aligned.barrier < 0.3 * found.naive.barrier
    assert found.after < 0.9 * found.before
    assert eq.act.barrier(reference, shuffled, held_out).barrier > 1.5 * found.aligned.barrier
    assert "barrier" in str(found)
    assert found.notes == ()


def test_dead_and_duplicated_units_stay_what_they_are() -> None:
    reference = trained("mlp")
    with torch.no_grad():
        reference[0].weight[0] = reference[0].bias[0] = reference[2].weight[:, 0] = 0.0  # dead
        reference[2].weight[:, 1] = 0.0  # unread
        reference[0].weight[3], reference[0].bias[3] = reference[0].weight[2], reference[0].bias[2]
        reference[2].weight[:, 3] = reference[2].weight[:, 2]
    model = copy.deepcopy(reference)
    scattered(model, given("mlp"), 1.0, 1)
    eq.act.align(model, reference, given("mlp"), by="weights")
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    gaps = [
        (p - q).detach().norm(dim=1)
        for p, q in zip(reference.parameters(), model.parameters(), strict=True)
        if p.dim() > 1
    ]
    alive = torch.tensor([k for k in range(8) if k != 1])
    assert float(gaps[0][alive].max()) < 1e-5 and float(gaps[1].max()) < 1e-5


class Tied(Gpt):
    """The head reads with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.e.weight


class Shared(nn.Module):
    """One layer run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.m, self.o = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.tanh(self.m(torch.tanh(self.m(torch.tanh(self.i(x)))))))


@pytest.mark.parametrize("kind", [Tied, Shared])
def test_tied_parameters_move_together(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    reference = kind()
    data = given("gpt" if kind is Tied else "mlp")
    model = copy.deepcopy(reference)
    scattered(model, data, 1.0, 3)
    found = eq.act.align(model, reference, data, loss_fn=loss_of)
    assert found.before > 0.3 and found.after < 1e-6
    assert kind is Shared or model.head.weight is model.e.weight


def test_what_does_not_fit_is_refused_by_name() -> None:
    model, other, data = trained("mlp"), copy.deepcopy(trained("mlp")), given("mlp")
    with pytest.raises(ValueError, match="got the model itself"):
        eq.act.align(model, model, data)
    with pytest.raises(ValueError, match=r"shares 0\.weight with the model"):
        eq.act.align(model, nn.Sequential(*model), data)
    wide = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    with pytest.raises(ValueError, match=r"got 0\.weight of \(8, 6\) and of \(9, 6\)"):
        eq.act.align(model, wide, data)
    with pytest.raises(ValueError, match=r"got 0\.weight of \(8, 6\) and of nothing"):
        eq.act.align(model, nn.Sequential(nn.Identity()), data)
    with torch.no_grad():
        other[2].bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"2\.bias is not finite"):
        eq.act.align(model, other, data)
    with pytest.raises(ValueError, match="by must be"):
        eq.act.align(model, wide, data, by="luck")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got luck"):
        eq.act.align(model, trained("mlp"), data, families=["luck"])
    foreign = torch.optim.SGD(other.parameters(), 0.1)
    before, sound = state(model), trained("mlp")
    scattered(sound, data, 1.0, 1)
    with pytest.raises(ValueError, match="optimizer of the model's parameters"):
        eq.act.align(model, sound, data, foreign)
    assert same(before, state(model))


def other_mlp() -> nn.Module:
    model = trained("mlp")
    scattered(model, given("mlp"), 1.0, 1)
    return model


def test_it_says_where_nothing_was_gained() -> None:
    lone = nn.Linear(6, 3)
    none = eq.act.align(lone, nn.Linear(6, 3), given("mlp"))
    assert none.after == none.before
    assert "no symmetry was found" in str(none)
    equal = eq.act.align(trained("mlp"), trained("mlp"), given("mlp"))
    assert (equal.before, equal.after, equal.notes) == (0.0, 0.0, ())
    unlabelled = eq.act.align(trained("mlp"), other_mlp(), given("mlp")[0])
    assert "no targets to judge by" in str(unlabelled)
    flat = Barrier(
        at=(0.0, 0.5, 1.0), losses=(1.0, 2.0, 1.0), accuracies=None, barrier=1.0, stderr=0.1,
        highest=0.5, samples=8, batches=2, recomputed=False,
    )  # fmt: skip
    one = Matched(family="permutation", name="0-2", size=8, moved=4, slots=3)
    worse = Aligned(
        before=1.0, after=1.5, balanced_before=1.0, balanced_after=0.5, change=0.0, floor=1e-7,
        way="weights", matched=(one,), naive=flat, aligned=replace(flat, barrier=1.1),
    )  # fmt: skip
    assert len(worse.notes) == 2
    assert "the distance is no smaller" in str(worse)
    assert "the barrier is no lower" in str(worse)
    assert "50%" in str(worse)
    assert replace(worse, after=0.5, aligned=replace(flat, barrier=0.5)).notes == ()
