"""Balance: one point for all of an orbit, the same function, and nothing else."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox import act
from eqtoolbox.act import balancing
from eqtoolbox.act.function import LiveFunction
from eqtoolbox.act.motion import path_of
from eqtoolbox.act.transaction import carry_out
from eqtoolbox.weights import ContinuousSymmetry, discover
from eqtoolbox.weights.orbit.canonical import canonical, sides
from tests.act.networks import NETWORKS, batch, loss_of, network, scattered, train
from tests.act.test_transaction import OPTIMIZERS, everything, same
from tests.symmetry.architectures import Lora


def balanced(model: nn.Module, given: Any, **options: Any) -> act.Balanced:
    return act.balance(model, given, loss_fn=loss_of, curvature=False, **options)


def kept(model: nn.Module, given: Any) -> list[ContinuousSymmetry]:
    """What balancing moves by: verified, and of the function in both modes."""
    function = LiveFunction.of(model, given, loss_of)
    found = [s for s in discover(model, given, loss_of) if isinstance(s, ContinuousSymmetry)]
    usable = [s for s in found if s.status == "verified" and not s.equivariant]
    usable = [s for s in usable if s.form.balance not in (None, "norm one")]
    with function.objective.isolated():
        return balancing.keeping(usable, function)[0]


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


@torch.no_grad()
def answers(model: nn.Module, given: Any, training: bool) -> Tensor:
    there = copy.deepcopy(model).train(training)
    return there(given[0]).double()


MODES = [(name, True) for name in NETWORKS] + [("batch norm", False), ("residual", False)]


@pytest.mark.parametrize(("name", "training"), MODES)
def test_all_points_of_an_orbit_have_one_least_norm_point(name: str, training: bool) -> None:
    model = network(name, torch.float64).train(training)
    given = batch(name, torch.float64)
    moves = kept(model, given)
    start, here = flat(model), copy.deepcopy(model)
    found = balanced(here, given)
    assert found.norm_after <= found.norm_before
    assert found.norm_after == pytest.approx(float(flat(here).square().sum()))
    for sigma in (1.0, 2.0):
        there = copy.deepcopy(model)
        scattered(there, moves, sigma)
        assert (flat(there) - start).norm() > start.norm()
        old = {mode: answers(there, given, mode) for mode in (True, False)}
        again = balanced(there, given)
        assert (flat(there) - flat(here)).norm() < 1e-8 * flat(here).norm()
        assert again.change <= 3 * again.floor
        for mode, was in old.items():
            assert (answers(there, given, mode) - was).norm() < 1e-10 * was.norm()


@pytest.mark.parametrize("name", ["mlp", "batch norm", "residual", "experts"])
def test_it_is_the_same_point_in_single_precision(name: str) -> None:
    model, given = network(name), batch(name)
    moves, here = kept(model, given), copy.deepcopy(model)
    balanced(here, given)
    for sigma in (1.0, 2.0):
        there = copy.deepcopy(model)
        scattered(there, moves, sigma)
        assert balanced(there, given).change < 1e-5
        assert (flat(there) - flat(here)).norm() < 1e-6 * flat(here).norm()


def test_networks_off_the_orbit_have_other_points() -> None:
    """Negative control: the point tells networks apart."""
    given = batch("mlp")
    one, two = network("mlp"), network("mlp", steps=5)
    balanced(one, given)
    balanced(two, given)
    assert (flat(one) - flat(two)).norm() > 1e-3 * flat(one).norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_path_leads_to_the_point_and_takes_gradients_along(name: str) -> None:
    model, given = network(name, torch.float64), batch(name, torch.float64)
    moves = kept(model, given)
    scattered(model, moves, 0.5, seed=1)
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    point = canonical(moves, params, limits=False)
    motion = path_of(point.path)
    moved = motion.moved(params)
    for n, t in moved.items():
        torch.testing.assert_close(t, point.params[n], rtol=1e-7, atol=1e-9)
    model.zero_grad()
    loss_of(model, given).backward()
    carry_out(model, motion, act="move", said="", params=dict(point.params))
    along = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss_of(model, given).backward()
    size = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    for n, p in model.named_parameters():
        if p.grad is not None:
            assert (along[n] - p.grad).norm() < 1e-8 * size, n


def test_running_statistics_left_behind_would_change_the_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bias before a batch normalisation goes to zero, and the running mean with it."""
    model, given = network("residual", torch.float64), batch("residual", torch.float64)
    with torch.no_grad():
        model.c1.bias += 3.0
    train(model, torch.optim.SGD(model.parameters(), 0.0), given, 30)  # statistics follow
    before = answers(model, given, training=False)
    bare = copy.deepcopy(model)
    found = balanced(model, given)
    assert "translation" in found.families and float(model.c1.bias.detach().abs().max()) < 1e-9
    after = answers(model, given, training=False)
    assert (after - before).norm() < 1e-9 * before.norm()
    monkeypatch.setattr(LiveFunction, "statistics", lambda *_: {})
    assert "translation (c1) changes the outputs in evaluation mode" in str(balanced(bare, given))


def test_scale_is_moved_when_asked_for_and_running_statistics_follow() -> None:
    model, given = network("batch norm", torch.float64), batch("batch norm", torch.float64)
    before = answers(model, given, training=False)
    with pytest.raises(ValueError, match="give approximate=True"):
        balanced(model, given, families=["scale"])
    found = balanced(model, given, families=["scale"], approximate=True)
    assert found.families == ("scale",)
    weights = model[4].weight.detach().flatten(1).norm(dim=1)
    assert torch.allclose(weights, torch.ones_like(weights))
    after = answers(model, given, training=False)
    assert 1e-9 < (after - before).norm() / before.norm() < 1e-2


def test_what_keeps_the_loss_alone_needs_to_be_asked_for() -> None:
    model, given = network("mlp", torch.float64), batch("mlp", torch.float64)
    with torch.no_grad():
        model[4].bias += 2.0
    other = copy.deepcopy(model)
    before, loss = answers(model, given, True), float(loss_of(model, given).detach())
    found = balanced(model, given)
    assert "translation" not in found.families
    assert (answers(model, given, True) - before).norm() < 1e-12 * before.norm()
    assert "translation" in balanced(other, given, keep="loss").families
    assert float(loss_of(other, given).detach()) == pytest.approx(loss, rel=1e-12)
    assert (answers(other, given, True) - before).norm() > 0.1 * before.norm()


@pytest.mark.parametrize("name", ["nesterov", "adam"])
def test_what_a_training_has_gathered_moves_along(name: str) -> None:
    """m -> T^-T m and v -> (T^-T)^2 v; left behind, the next step would go elsewhere."""
    model, given = network("mlp", torch.float64), batch("mlp", torch.float64)
    scattered(model, kept(model, given), 1.0)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, given, 3)
    own = dict(model.named_parameters())
    before = {n: p.detach().clone() for n, p in own.items()}
    state = copy.deepcopy({n: optimizer.state[p] for n, p in own.items()})
    balanced(model, given, optimizer=optimizer)
    for n, p in own.items():
        rate = torch.where(p != 0, before[n] / p.detach(), 1.0)  # T^-T of a diagonal T
        keys = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2}
        for key in state[n].keys() & keys.keys():
            expected = state[n][key] * rate ** keys[key]
            torch.testing.assert_close(optimizer.state[p][key], expected)
    assert any((before[n] / p - 1).abs().max() > 0.5 for n, p in own.items())


def test_dead_units_stay_as_they_are_by_name() -> None:
    model, given = network("mlp", torch.float64), batch("mlp", torch.float64)
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0.0, 0.0  # nothing comes in
        model[2].weight[:, 5] = 0.0  # nothing goes out
        model[2].weight[3] = model[2].weight[4]  # a duplicate
    old = model[0].weight[5].detach().clone(), model[2].weight[:, 2].detach().clone()
    found = balanced(model, given)
    assert list(found.left.values()) == [(2, 5)]
    assert "left alone: units 2, 5 of rescale (0-2), which have no minimum" in str(found)
    assert torch.equal(model[0].weight[5], old[0])
    assert bool(model[2].weight[:, 2].abs().min() > 0) and bool((old[1] != 0).all())


def test_an_adapter_that_begins_at_zero_is_left_alone() -> None:
    torch.manual_seed(0)
    model, given = Lora().double(), batch("mlp", torch.float64)
    nn.init.zeros_(model.b.weight)
    nn.init.zeros_(model.w.bias)
    old = model.a.weight.detach().clone()
    try:
        balanced(model, given)
    except ValueError as error:  # nothing else has a minimum
        assert "nothing to balance" in str(error)
    assert torch.equal(model.a.weight, old)


def test_both_sides_of_every_unit_are_equal_there() -> None:
    model, given = network("mlp", torch.float64), batch("mlp", torch.float64)
    balanced(model, given)
    params = {n: p.detach() for n, p in model.named_parameters()}
    rescale = next(s for s in discover(model, given, loss_of) if s.family == "rescale")
    plus, minus = sides(rescale.form, params)  # type: ignore[attr-defined]
    torch.testing.assert_close(plus, minus)


def spectrum(model: nn.Module, given: Any) -> Tensor:
    """All eigenvalues of the dense Hessian, the largest first."""
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([s.numel() for s in shapes])
        own = {n: x.reshape(s) for n, x, s in zip(names, parts, shapes, strict=True)}
        output = torch.func.functional_call(model, own, given[0])
        return nn.functional.cross_entropy(output, given[1])

    return torch.linalg.eigvalsh(torch.func.hessian(loss)(flat(model))).flip(0)


def test_sharpness_and_conditioning_are_those_of_the_hessian() -> None:
    model, given = network("mlp", torch.float64), batch("mlp", torch.float64)
    scattered(model, kept(model, given), 1.0)
    before = spectrum(model, given)
    found = act.balance(model, given, loss_fn=loss_of)
    after = spectrum(model, given)
    assert found.sharpness_before == pytest.approx(float(before[0]), rel=1e-2)
    assert found.sharpness_after == pytest.approx(float(after[0]), rel=1e-2)
    assert found.conditioning_after == pytest.approx(float(after[0] / after[4]), rel=5e-2)
    assert f"{found.sharpness_before:.4g} -> {found.sharpness_after:.4g}" in str(found)


def test_a_function_that_would_change_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = network("mlp"), batch("mlp")
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, given, 2)
    before = everything(model, optimizer)
    monkeypatch.setattr(balancing, "FLOORS", 0.0)
    with pytest.raises(ValueError, match="nothing was changed"):
        balanced(model, given, optimizer=optimizer)
    assert same(before, everything(model, optimizer))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a family that is not there": ({"families": ["rope"]}, "expected families among"),
    "no family": ({"families": []}, "nothing to balance"),
    "only what changes outputs": ({"families": ["translation"]}, "changes the outputs in training"),
    "another model's optimizer": (
        {"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))])}, "of others",
    ),
    "neither": ({"keep": "both"}, "keep must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused_and_nothing_is_changed(case: str) -> None:
    options, match = REFUSED[case]
    model, given = network("mlp"), batch("mlp")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError), match=match):
        balanced(model, given, **options)
    assert same(dict(before), dict(model.state_dict()))


def test_a_model_that_cannot_be_analysed_says_so() -> None:
    with pytest.raises(ValueError, match="no trainable parameters"):
        act.balance(nn.ReLU(), (torch.ones(2, 3), torch.ones(2, 3)))
    with pytest.raises(ValueError, match="nothing to balance"):
        act.balance(nn.Linear(3, 2), (torch.randn(8, 3), torch.randn(8, 2)))
    with pytest.raises(ValueError, match="could not be analysed"):
        act.balance(nn.Linear(3, 2), (torch.randn(8, 4), torch.randn(8, 2)))


def test_it_leaves_modes_and_random_streams_alone() -> None:
    model, given = network("batch norm"), batch("batch norm")
    model[1].eval()
    modes = [m.training for m in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    streams = everything(model, optimizer)[3]
    act.balance(model, given, optimizer, loss_fn=loss_of)
    assert same(streams, everything(model, optimizer)[3])
    assert modes == [m.training for m in model.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
