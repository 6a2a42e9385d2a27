"""What is enforced obeys its claim, over groups and representations; laws with failing twins."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.enforce.averaged import Averaged
from eqtoolbox.enforce.elements import Rule
from eqtoolbox.symmetry import Equivariance, equivariance_error, pulled_back
from eqtoolbox.symmetry.actions.action import dihedral, quarter_turn, trivial
from eqtoolbox.symmetry.actions.fields import vector_field
from eqtoolbox.symmetry.groups import Cyclic, Dihedral, Flip
from eqtoolbox.symmetry.structure import on_tensors, tensors
from tests.enforce.claims import CASES, Case, Mlp

every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def apart(left: Any, right: Any) -> float:
    """The largest difference of two trees."""
    pairs = zip(tensors(left), tensors(right), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def broken(made: nn.Module, case: Case) -> float:
    """The largest |f(S_g x) - R_g f(x)| over all elements, by calls as a user makes them."""
    x, claim = case.batch(), case.claim
    call = lambda x: made(**x) if isinstance(x, dict) else made(x)
    given = lambda y: {k: v for k, v in y.items() if v is not None} if isinstance(y, dict) else y
    y = given(call(x))
    return max(
        apart(given(call(claim.input_action(g, x))), claim.output_action(g, y))
        for g in claim.group.elements()
    )


@every
def test_the_average_obeys_its_claim_and_the_model_does_not(case: Case) -> None:
    model = case.model()
    made = eq.enforce.averaged(model, case.claim, case.batch())
    assert broken(made, case) < 1e-13
    assert made.report.result.verdict in ("holds", "trivial")
    assert broken(model, case) > 1e-3 and made.report.before.verdict == "violated"
    assert made.report.forwards == case.claim.group.order


@every
def test_an_average_that_leaves_an_element_out_is_violated(case: Case) -> None:
    some = Rule(tuple(case.claim.group.elements())[:-1])
    with pytest.raises(ValueError, match="relative error"):
        Averaged(case.model(), case.claim, some, None, "averaged").on_sample(case.batch())


@pytest.mark.parametrize("name", ["dihedral, vector fields", "symmetric, rows", "cyclic, a matrix"])
def test_an_average_that_moves_outputs_the_wrong_way_is_violated(name: str) -> None:
    case = CASES[name]
    back = case.claim.group.inverse
    wrong = replace(case.claim, output_action=lambda g, y: case.claim.output_action(back(g), y))
    made = Averaged(case.model(), wrong, Rule(tuple(case.claim.group.elements())), None, "averaged")
    made.report = "not checked"
    assert broken(made, case) > 1e-3


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not isinstance(c.shape, dict)])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_the_average_is_the_mean_of_the_predictions_pulled_back(name: str, chunk: int) -> None:
    case = CASES[name]
    model, x = case.model(), case.batch()
    made = eq.enforce.averaged(model, case.claim, x, chunk=chunk)
    mean = pulled_back(model, x, case.claim, case.claim.group.elements()).mean(0)
    assert apart(made(x), mean) < 1e-14


@every
def test_averaging_twice_changes_nothing(case: Case) -> None:
    once = eq.enforce.averaged(case.model(), case.claim)
    twice = eq.enforce.averaged(once, case.claim, case.batch())
    call = lambda m: m(**case.batch()) if isinstance(case.shape, dict) else m(case.batch())
    assert apart(call(once), call(twice)) < 1e-14


class ByPlace(nn.Module):
    """A score of where a pose stands in the batch, not of the pose."""

    def forward(self, poses: Any) -> torch.Tensor:
        return torch.arange(len(tensors(poses)[0])).double()


@every
def test_a_canonical_pose_obeys_the_claim(case: Case) -> None:
    made = eq.enforce.canonicalised(case.model(), case.claim, None, case.batch())
    assert made.report.result.verdict in ("holds", "trivial")
    assert broken(made, case) < 1e-12
    assert (made.report.forwards, made.report.scores) == (1, case.claim.group.order)
    made.score = ByPlace()
    assert broken(made, case) > 1e-3


def test_the_pose_of_each_sample_is_its_own() -> None:
    claim = Equivariance(Cyclic(4), quarter_turn, quarter_turn)
    corner = lambda x: x[:, 0, 0, 0]
    made = eq.enforce.canonicalised(nn.Identity(), claim, corner)
    x = torch.zeros(3, 1, 2, 2)
    x[0, 0, 0, 1], x[1, 0, 1, 1], x[2, 0, 1, 0] = 1.0, 1.0, 1.0
    poses = eq.enforce.canonicalised(nn.Identity(), replace(claim, output_action=trivial), corner)
    expected = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).expand(3, 1, 2, 2)
    assert torch.equal(poses.eval()(x), expected)
    assert torch.equal(made(x), x)


@pytest.mark.parametrize("kept", [True, False])
def test_inputs_with_a_stabiliser_have_outputs_that_it_keeps(kept: bool) -> None:
    """Of a square the field must vanish in the middle; an output moved back once does not."""
    claim = Equivariance(Dihedral(4), dihedral, vector_field)
    x = torch.zeros(4, 1, 4, 4, dtype=torch.float64)
    x[0, :, 1:3, 1:3], x[1, :, 0], x[2, 0, 0, 0], x[3] = 1.0, 1.0, 1.0, torch.randn(1, 4, 4)
    made = eq.enforce.canonicalised(Mlp((1, 4, 4), (2, 4, 4)).double(), claim, None, x)
    if not kept:
        made.elements, drop = made.elements[:4], made.elements[4:]
        assert len(drop) == 4
    made(x)
    assert [m == 0.0 for m in made.margins.tolist()][:1] == [True]
    error = equivariance_error(made, x, claim)
    assert (error.verdict == "holds") is kept


@pytest.mark.parametrize("make", [eq.enforce.averaged, eq.enforce.canonicalised])
def test_training_keeps_what_is_enforced(make: Any) -> None:
    claim = Equivariance(Dihedral(4), vector_field, vector_field)
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 2, 3)
    )
    plain = plain.double()
    made = make(plain, claim)
    x, y = (
        torch.randn(16, 2, 6, 6, dtype=torch.float64),
        torch.randn(16, 2, 4, 4, dtype=torch.float64),
    )
    optimizer, before = torch.optim.Adam(made.parameters(), lr=0.01), made(x).detach()
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.mse_loss(made(x), y).backward()
        optimizer.step()
    assert apart(made(x), before) > 0.05
    assert equivariance_error(made, x, claim).relative_error < 1e-13  # in train mode
    assert equivariance_error(made.eval(), x, claim).relative_error < 1e-13
    assert equivariance_error(plain, x, claim).relative_error > 0.1


def test_gradients_of_the_average_do_not_see_how_the_data_were_turned() -> None:
    claim = Equivariance(Cyclic(4), quarter_turn, trivial)
    model = Mlp((1, 4, 4), (3,)).double()
    made = eq.enforce.averaged(model, claim)

    def gradient(function: nn.Module, turns: int) -> torch.Tensor:
        x = quarter_turn(turns, torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(8, 1, 4, 4))
        loss = function(x).square().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    scale = gradient(made, 0).norm()
    assert (gradient(made, 0) - gradient(made, 1)).norm() < 1e-13 * scale
    assert (gradient(model, 0) - gradient(model, 1)).norm() > 1e-2 * scale


def test_statistics_of_a_batch_norm_are_those_of_the_orbit() -> None:
    claim = Equivariance(Flip(), dihedral_flip, trivial)
    x = torch.randn(8, 1, 4, 4, dtype=torch.float64)

    def statistics(flipped: bool, chunk: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(2).double()
        model = nn.Sequential(nn.Conv2d(1, 2, 2).double(), norm, nn.Flatten())
        eq.enforce.averaged(model, claim, x, chunk=chunk)(dihedral_flip(flipped, x))
        return norm.running_mean

    assert torch.allclose(statistics(False, None), statistics(True, None), rtol=0, atol=1e-15)
    assert not torch.allclose(statistics(False, 1), statistics(True, 1), rtol=0, atol=1e-6)


def dihedral_flip(g: bool, x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1) if g else x


def test_dropout_is_exact_in_evaluation_and_drawn_anew_in_training() -> None:
    claim = Equivariance(Cyclic(4), quarter_turn, trivial)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    x = torch.randn(8, 1, 4, 4, dtype=torch.float64)
    made = eq.enforce.averaged(model, claim, x)
    assert made.training and made.report.result.verdict == "holds"
    assert apart(made(x), made(quarter_turn(1, x))) > 1e-2
    assert apart(made.eval()(x), made(quarter_turn(1, x))) < 1e-14


def test_half_precision_is_averaged_in_float32() -> None:
    claim = Equivariance(Cyclic(4), quarter_turn, quarter_turn)
    x = torch.randn(8, 1, 4, 4)
    made = eq.enforce.averaged(nn.Conv2d(1, 1, 3, padding=1), claim, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, turned = made(x), made(quarter_turn(1, x))
    assert y.dtype is torch.bfloat16
    assert torch.equal(turned, quarter_turn(1, y))


def test_trees_keep_what_is_no_tensor() -> None:
    made = eq.enforce.averaged(CASES["arguments by name"].model(), CASES["arguments by name"].claim)
    found = made(**CASES["arguments by name"].batch())
    assert list(found) == ["field", "energy", "nothing"] and found["nothing"] is None
    assert on_tensors(lambda x: x.dtype, found)["energy"] is torch.float64
