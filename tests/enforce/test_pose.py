"""A learned pose: scores get gradients in training alone, optimizers made later train them."""

import math

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.enforce.score import PoseScore
from eqtoolbox.symmetry import Equivariance
from eqtoolbox.symmetry.actions.action import quarter_turn, trivial
from eqtoolbox.symmetry.groups import Cyclic
from tests.enforce.claims import CASES, Case, Mlp

IMAGES = Equivariance(Cyclic(4), quarter_turn, quarter_turn)


def batch() -> Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(8, 1, 4, 4, generator=rng, dtype=torch.float64)


def made(claim: Equivariance = IMAGES) -> nn.Module:
    torch.manual_seed(0)
    model = Mlp((1, 4, 4), (1, 4, 4)).double()
    return eq.enforce.canonicalised(model, claim, PoseScore().double(), batch())


def test_values_are_those_of_the_choice_and_gradients_those_of_a_soft_one() -> None:
    posed, x = made(), batch()
    assert torch.equal(posed.train()(x), posed.eval()(x))
    wanted = torch.randn(8, 1, 4, 4, dtype=torch.float64)
    parameters = list(posed.score.parameters())
    loss = (posed.train()(x) * wanted).sum()
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    # by hand: the chosen pose and output, each with the weights of a softmax in its place
    poses = torch.stack([quarter_turn(k, x) for k in range(4)], 1)
    scores = posed.score(poses.flatten(0, 1)).reshape(8, 4)
    best, soft = scores.argmax(1), scores.softmax(1)
    pose = poses[torch.arange(8), best].requires_grad_()
    y = posed.model(pose)
    back = torch.stack([quarter_turn(-k, y) for k in range(4)], 1)
    (slope,) = torch.autograd.grad(
        (back[torch.arange(8), best] * wanted).sum(), pose, retain_graph=True
    )
    surrogate = (
        soft * ((poses * slope[:, None]) + (back * wanted[:, None])).flatten(2).sum(2).detach()
    ).sum()
    expected = torch.autograd.grad(surrogate, parameters, allow_unused=True)
    used = [(f, e) for f, e in zip(found, expected, strict=True) if e is not None and e.any()]
    assert len(used) >= 5
    assert all(torch.allclose(f, e, atol=1e-12) for f, e in used)


def test_a_score_gets_no_gradient_in_evaluation() -> None:
    posed = made().eval()
    posed(batch()).sum().backward()
    assert all(p.grad is None for p in posed.score.parameters())
    assert all(p.grad is not None for p in posed.model.parameters())


def test_an_optimizer_made_afterwards_trains_the_score_and_one_made_before_does_not() -> None:
    model = Mlp((1, 4, 4), (1, 4, 4)).double()
    before = torch.optim.SGD(model.parameters(), lr=0.1)
    posed = eq.enforce.canonicalised(model, IMAGES)
    after = torch.optim.SGD(posed.parameters(), lr=0.1)
    for optimizer, moves in ((before, False), (after, True)):
        first = posed.score.bins.weight.detach().clone()
        optimizer.zero_grad()
        posed(batch()).square().sum().backward()
        optimizer.step()
        assert bool((posed.score.bins.weight != first).any()) is moves


def test_margins_are_of_the_last_call_and_the_smallest_is_reported() -> None:
    corner = lambda x: x[:, 0, 0, 0]
    posed = eq.enforce.canonicalised(nn.Identity(), IMAGES, corner)
    assert posed.margins is None and math.isnan(posed.margin)
    x = torch.zeros(2, 1, 2, 2)
    x[0, 0], x[1, 0] = (
        torch.tensor([[4.0, 1.0], [2.0, 0.0]]),
        torch.tensor([[0.0, 1.0], [0.5, 0.0]]),
    )
    posed(x)
    assert posed.margins.tolist() == [2.0, 0.5] and posed.margin == 0.5 == posed.report.margin
    assert "second: 0.5" in str(posed.report)


def test_a_jump_stands_where_the_margin_vanishes() -> None:
    corner = lambda x: x[:, 0, 0, 0]
    tall = lambda x: x[:, 0, 0].sum(1, keepdim=True)
    posed = eq.enforce.canonicalised(tall, Equivariance(Cyclic(4), quarter_turn, trivial), corner)
    x = torch.tensor([[[[1.0, 0.0], [5.0, 1.0]]]]).repeat(2, 1, 1, 1)
    x[0, 0, 1, 0], x[0, 0, 0, 0], x[1, 0, 1, 0], x[1, 0, 1, 1] = 0.5, 1.001, 0.5, 1.001
    y = posed(x)
    assert posed.margin == pytest.approx(0.001, rel=1e-3)
    assert abs(float(y[0] - y[1])) > 0.4  # for a change of the input by 0.001


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_learned_score_takes_any_input_and_tells_entries_apart(case: Case) -> None:
    x = case.batch()
    leaf = next(iter(x.values())) if isinstance(x, dict) else x
    scores = PoseScore()(x)
    assert scores.shape == (8,) and scores.unique().numel() == 8
    swapped = leaf.flatten(1).roll(1, 1).reshape(leaf.shape)
    other = PoseScore()({**x, next(iter(x)): swapped} if isinstance(x, dict) else swapped)
    assert bool((other != scores).all()) or case.shape == (2,)


def test_the_learned_score_leaves_random_streams_alone_and_takes_masks_and_large_inputs() -> None:
    before = torch.get_rng_state()
    score = PoseScore(7)
    assert torch.equal(torch.get_rng_state(), before)
    x = {
        "tokens": torch.randn(3, 40, 50),
        "mask": torch.full((3, 40), -torch.inf),
        "pad": torch.ones(3, 4) > 0,
    }
    assert bool(torch.isfinite(score(x)).all())
    assert not torch.equal(score(x), PoseScore(8)(x)) and torch.equal(score(x), PoseScore(7)(x))
    large = torch.randn(2, 3, 64, 64)
    assert bool((score(large) != score(quarter_turn(1, large))).all())
    assert torch.allclose(score(large), score(1e6 * large), atol=1e-5)


def test_infinite_masks_move_along() -> None:
    mask = torch.where(torch.rand(8, 1, 4, 4) > 0.5, 0.0, -torch.inf).double()
    summed = lambda x: x.exp().flatten(1).cumsum(1)
    posed = eq.enforce.canonicalised(summed, Equivariance(Cyclic(4), quarter_turn, trivial))
    y = posed.train()(mask)
    y.sum().backward()
    assert bool(torch.isfinite(y).all()) and torch.equal(y, posed(quarter_turn(1, mask)))
    assert all(bool(torch.isfinite(p.grad).all()) for p in posed.parameters() if p.grad is not None)
