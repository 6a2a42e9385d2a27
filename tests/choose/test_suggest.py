"""Suggestions: what is suggested on data whose symmetries are known, and what never is."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.choose import worth
from eqtoolbox.demos.digits import load_digits
from eqtoolbox.demos.robot import MIRROR, PlainArm, torques
from eqtoolbox.symmetry.actions.action import quarter_turn, trivial
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.group import Cyclic

IMAGES, LABELS = load_digits().train
HALF = Equivariance(Cyclic(2), lambda g, x: quarter_turn(2 * g, x), trivial, name="half")


def some(seed: int, count: int = 100) -> tuple[Tensor, Tensor]:
    rows = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(seed))[:count]
    return IMAGES[rows], LABELS[rows]


def turned(images: Tensor, seed: int) -> Tensor:
    turns = torch.randint(4, (len(images),), generator=torch.Generator().manual_seed(seed))
    return torch.stack([quarter_turn(int(k), x) for k, x in zip(turns, images, strict=True)])


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


FAST = {"ways": ["augmented"], "steps": 5, "repeats": 1, "folds": 2, "infer": False}


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_suggested_on_upright_digits(seed: int) -> None:
    found = eq.suggest(perceptron(), *some(seed))
    assert found.best is None and {row.outcome for row in found} == {"refused"}
    assert "No symmetry is suggested" in str(found)


def test_without_the_gate_quarter_turns_are_tried_on_upright_digits(monkeypatch) -> None:
    monkeypatch.setattr(worth, "REFUSED", -1.0)
    found = eq.suggest(perceptron(), *some(0), ways=["augmented"], repeats=1, steps=20)
    assert any(row.claim.name == "cyclic4.invariant" and row.gain is not None for row in found)


@pytest.mark.parametrize("seed", [3])
def test_quarter_turns_come_first_on_turned_digits(seed: int) -> None:
    images, labels = some(seed)
    found = eq.suggest(perceptron(), turned(images, seed), labels, ways=["averaged"])
    best = found[0]
    assert best is found.best and best.claim.name == "cyclic4.invariant"
    assert best.gain.value >= 0.10 and best.evidence > found.plain_evidence
    row = next(row for row in found if row.claim.name == "sign.even")
    assert row.outcome == "refused" and row.gain is None and row.evidence is None
    assert {row.claim.name for row in found if row.outcome == "gains"} == {"cyclic4.invariant"}


def test_a_group_that_contains_a_refused_one_is_refused(monkeypatch) -> None:
    images, labels = some(0, 200)
    x, options = turned(images, 0), FAST | {"ways": ["augmented"]}
    rows = {row.claim.name: row for row in eq.suggest(perceptron(), x, labels, **options)}
    assert rows["flip.invariant"].outcome == "refused"
    assert rows["dihedral4.invariant"].outcome == "refused"
    assert "contains flip.invariant" in rows["dihedral4.invariant"].note
    assert rows["cyclic4.invariant"].outcome != "refused"
    monkeypatch.setattr(worth, "LARGEST", 0)
    rows = {row.claim.name: row for row in eq.suggest(perceptron(), x, labels, **options)}
    assert rows["dihedral4.invariant"].outcome != "refused", "its own test does not see it"


def test_tied_weights_are_compared_at_equal_weights_and_the_call_builds_them() -> None:
    images, labels = some(0)
    x, model = turned(images, 0), perceptron()
    found = eq.suggest(model, x, labels, claims=[HALF], **FAST | {"ways": ["tied"]})
    row = next(row for row in found if row.claim.name == "half")
    assert row.weights == pytest.approx(found.plain_weights, rel=0.05)
    names = {"eqtoolbox": eq, "model": model, "claim": row.claim, "sample": x[:2]}
    built = eval(row.call, names)
    assert equivariance_error(built.eval(), x[:8], row.claim).verdict == "holds"
    assert built.weights[1] == row.weights


def six_and_nine() -> tuple[Tensor, Tensor]:
    """Sixes, some turned on their heads, and whether they then read as nines."""
    sixes = IMAGES[LABELS == 6][:120]
    heads = torch.randint(2, (120,), generator=torch.Generator().manual_seed(0))
    x = torch.stack([quarter_turn(2 * int(h), x) for h, x in zip(heads, sixes, strict=True)])
    return x, heads


def test_labels_that_tell_six_from_nine_refuse_half_turns() -> None:
    x, heads = six_and_nine()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    (row,) = [r for r in eq.suggest(net, x, heads, claims=[HALF], **FAST) if r.claim == HALF]
    assert row.outcome == "refused" and "the data do not have it" in row.note
    others = heads[torch.randperm(len(heads), generator=torch.Generator().manual_seed(1))]
    (row,) = [r for r in eq.suggest(net, x, others, claims=[HALF], **FAST) if r.claim == HALF]
    assert row.outcome != "refused"  # of labels that half turns leave alone it is not


def test_the_mirror_comes_first_on_the_robot() -> None:
    """Of two laws that hold, it is the one asked for: torques are odd in the state, too."""
    x = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    quick = {"ways": ["averaged"], "repeats": 1, "infer": False}
    found = eq.suggest(PlainArm(), x, torques(x), claims=[MIRROR], **quick)
    assert found.best is found[0] and found[0].claim is MIRROR
    assert found.unit == "relative error" and found[0].gain.value > 0.03
    assert abs(found[0].score) < abs(found.plain)


class Arguments(nn.Module):
    """Two arguments, batch norm and dropout, a parameter that nothing draws anew."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.net(self.scale * torch.cat([a, b], 1))


def test_model_and_random_streams_are_as_before() -> None:
    model = Arguments().train()
    model.net[1].eval()
    a, b = torch.randn(40, 2), torch.randn(40, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]

    def streams() -> list[object]:
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
        ]

    def train(network, inputs, targets) -> None:
        random.random(), np.random.rand()
        nn.functional.mse_loss(network(*inputs), targets).backward()

    start = streams()
    found = eq.suggest(model, (a, b), a[:, :1] * b[:, 1:], train=train, folds=2, ways=["augmented"])
    with pytest.raises(ValueError, match="must differ"):
        eq.suggest(model, (a, b), torch.ones(40, 1))
    assert streams() == start and [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert any("scale could not be drawn anew" in note for note in found.notes)


class Locked(nn.Linear):
    def __deepcopy__(self, memo: object) -> None:
        raise RuntimeError("locked")


X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
Y = X[:, :1]
BAD = {
    "few samples": (nn.Linear(3, 1), X[:9], Y[:9], {}, "5 folds need at least 10 samples, got 9"),
    "few at all": (nn.Linear(3, 1), X[:7], Y[:7], {"folds": 2}, "at least 8 samples, got 7"),
    "another length": (nn.Linear(3, 1), X, Y[:29], {}, "expected 30 targets"),
    "no targets": (nn.Linear(3, 1), X, None, {}, "expected 30 targets"),
    "one value": (nn.Linear(3, 1), X, Y * 0, {}, "targets must differ"),
    "one label": (nn.Linear(3, 2), X, torch.ones(30, dtype=torch.long), {}, "targets must differ"),
    "NaN in x": (nn.Linear(3, 1), X * torch.nan, Y, {}, "inputs must be finite"),
    "NaN in y": (nn.Linear(3, 1), X, Y / 0, {}, "targets must be finite"),
    "labels": (nn.Linear(3, 2), X, torch.arange(30), {}, "labels must be from 0 to 1"),
    "shape": (nn.Linear(3, 2), X, torch.randn(30, 5), {}, "floating-point values like the outputs"),
    "copies": (Locked(3, 1), X, Y, {}, "copy.deepcopy copies"),
    "frozen": (nn.Linear(3, 1).requires_grad_(False), X, Y, {}, "no weights that are trained"),
    "no weights": (nn.Flatten(), X, X, {}, "no weights that are trained"),
    "tokens": (nn.Linear(3, 1), X.long(), Y, {}, "inputs must be tensors, some of them floating"),
    "arrays": (nn.Linear(3, 1), X.numpy(), Y, {}, "got ndarray"),
    "way": (nn.Linear(3, 1), X, Y, {"ways": ["tide"]}, "did you mean 'tied'"),
    "claim": (nn.Linear(3, 1), X, Y, {"claims": ["c4"]}, "must be an Equivariance"),
    "seconds": (nn.Linear(3, 1), X, Y, {"seconds": 0.0}, "seconds must be a positive number"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case: str) -> None:
    model, x, y, options, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        eq.suggest(model, x, y, **options)


def test_a_lazy_model_is_refused() -> None:
    with pytest.raises(ValueError, match="call it on a batch first"):
        eq.suggest(nn.LazyLinear(1), X, Y)


def test_a_claim_that_does_not_act_is_a_row_that_says_so() -> None:
    claim = Equivariance(Cyclic(4), quarter_turn, trivial, name="turns")
    found = eq.suggest(nn.Linear(3, 1), X, Y, claims=[claim], **FAST)
    row = next(row for row in found if row.claim is claim)
    assert row.outcome == "refused" and "does not act" in row.note


def test_a_symmetry_that_the_model_has_is_kept_and_not_tried() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 10))
    images, labels = some(0)
    found = eq.suggest(net, turned(images, 0), labels, **FAST)
    row = next(row for row in found if row.claim.name == "cyclic4.invariant")
    assert row.outcome == "kept" and row.gain is None


def test_what_time_does_not_allow_is_said() -> None:
    images, labels = some(0)
    found = eq.suggest(perceptron(), turned(images, 0), labels, seconds=1e-3)
    assert found.best is None and any("time was over" in note for note in found.notes)
    assert {"not tried", "refused"} == {row.outcome for row in found}


class Springs(nn.Module):
    """Two arguments, several outputs, and a weight without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.net = nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        z = self.scale * self.net(torch.cat([a, b], 1))
        return {"energy": z[:, :1], "force": z[:, 1:]}


@pytest.mark.parametrize("named", [False, True])
def test_structured_batches_are_asked_as_single_tensors_are(named: bool) -> None:
    a, b = X, X.flip(0)
    y = {"energy": (a * b).sum(1, True), "force": a[:, :2]}
    inputs = {"a": a, "b": b} if named else (a, b)
    with torch.no_grad():
        found = eq.suggest(Springs(), inputs, y, **FAST)
    assert {"sign.all.even", "sign.a.odd"} <= {row.claim.name for row in found}
    assert found.unit == "relative error" and any(row.gain for row in found)


def test_a_model_that_is_not_fitted_is_said_to_be() -> None:
    images, labels = some(0)
    found = eq.suggest(perceptron(), turned(images, 0), labels, **FAST)
    assert any("may be one of speed" in note for note in found.notes)


def test_the_same_seed_gives_the_same_table() -> None:
    images, labels = some(0, 40)
    x = turned(images, 0)
    first, again = (str(eq.suggest(perceptron(), x, labels, **FAST)) for _ in range(2))
    other = str(eq.suggest(perceptron(), x, labels, seed=1, **FAST))
    assert first == again != other


def scrambled(count: int) -> tuple[Tensor, Tensor]:
    """A law that turns about an axis in coordinates that are mixed, and so do the inputs."""
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(count, 3, generator=rng)
    mix = torch.linalg.qr(torch.randn(3, 3, generator=rng))[0] * torch.tensor([1.0, 1.3, 0.8])
    return z @ mix.T, (z[:, :2].norm(dim=1) + z[:, 2]).unsqueeze(1)


def test_a_hidden_turn_is_found_claimed_and_comes_first() -> None:
    x, y = scrambled(120)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))
    found = eq.suggest(net, x, y, ways=["averaged"], steps=150, repeats=1)
    row = next(row for row in found if row.claim.name == "found.cyclic8")
    assert any("so(2)" in note for note in found.notes)
    assert row is found[0] and row.decides.value > 1.5 * row.decides.stderr
    law = eval(row.call, {"eqtoolbox": eq, "model": net, "claim": row.claim, "sample": x[:2]})
    assert equivariance_error(law, x, row.claim).verdict == "holds"


def test_where_nothing_turns_no_claim_is_inferred() -> None:
    x, _ = scrambled(120)
    net = nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 1))
    y = (x * torch.tensor([1.0, 1.4, 1.8])).sin().sum(1, True)
    found = eq.suggest(net, x, y, **FAST | {"infer": True, "steps": 300})
    assert not any(row.claim.name.startswith("found") for row in found)
    assert any("no continuous linear symmetry" in note for note in found.notes)
    few = eq.suggest(net, x, y, **FAST | {"infer": True, "steps": 1})
    assert any("the samples are not learned" in note for note in few.notes)
