"""The transaction: parameters and all that belongs to them move together, or not at all."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.act import transaction, write
from eqtoolbox.act.motion import Exchange, Flow, Motion
from eqtoolbox.act.transaction import carry_out, live
from eqtoolbox.weights import ContinuousSymmetry, ParameterSymmetry, discover
from eqtoolbox.weights.families.discrete import Permuting, SignFlip
from eqtoolbox.weights.families.experts import ExpertPermutation
from tests.act.networks import NETWORKS, batch, loss_of, network, train

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "dampened": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.5, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.005, eps=1e-13, momentum=0.5, centered=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0, eps=1e-12),
    "asgd": lambda p: torch.optim.ASGD(p, 0.05, t0=3),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
}
STATELESS = ("sgd", "asgd")  # averages of ASGD are not read by its steps


def plain(act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(6, 6), act(), nn.Linear(6, 3)).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 4, generator=generator).double(), torch.arange(16) % 3


def motion_by(model: nn.Module, s: ParameterSymmetry, size: float = 1.0) -> Motion:
    generator = torch.Generator().manual_seed(2)
    if isinstance(s, ContinuousSymmetry):
        c = torch.randn(s.dimension, generator=generator, dtype=torch.float64)
        return Flow(form=s.form, coefficients=size * c)
    assert isinstance(s, (Permuting, SignFlip))
    return Exchange.of(s, s.draw(generator), dict(model.named_parameters()))


def motion(model: nn.Module, family: str) -> Motion:
    return motion_by(model, next(s for s in discover(model, data()) if s.family == family))


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """All that an act could change, as copies."""
    random_states = [torch.get_rng_state(), *np.random.get_state()[1:3], random.getstate()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = copy.deepcopy([optimizer.state.get(p) for p in model.parameters()])
    return [copy.deepcopy(model.state_dict()), grads, state, random_states]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (Tensor, np.ndarray)):
        return bool((torch.as_tensor(a) == torch.as_tensor(b)).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_goes_on_the_same_after_units_changed_places(name: str) -> None:
    model = plain()
    moving = motion(model, "permutation")
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, data(), 6)
    bare, state_left = copy.deepcopy((model, optimizer))
    reference = train(*copy.deepcopy((model, optimizer)), data(), 6)
    carry_out(model, moving, optimizer, act="move", said="")
    carry_out(bare, moving, act="move", said="")
    assert train(model, optimizer, data(), 6) == pytest.approx(reference, rel=1e-9)
    stays = train(bare, state_left, data(), 6) == pytest.approx(reference, rel=1e-7)
    assert stays == (name in STATELESS)


def fed(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradients: list[dict[str, Tensor]]
) -> None:
    for own in gradients:
        for name, p in model.named_parameters():
            p.grad = own[name].clone()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("family", ["rescale", "sign_flip", "permutation"])
def test_state_is_what_moved_gradients_would_have_made_of_it(name: str, family: str) -> None:
    """The rule itself, against an optimizer that only ever saw T^-T g."""
    model = plain(nn.Tanh if family == "sign_flip" else nn.ReLU)
    moving = motion(model, family)
    at = {n: p.detach().clone() for n, p in model.named_parameters()}
    gradients = [{n: torch.randn_like(p) for n, p in at.items()} for _ in range(5)]
    other = copy.deepcopy(model)
    optimizer, expected = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](other.parameters())
    fed(model, optimizer, gradients)
    fed(other, expected, [{**g, **moving.cotangent(at, g)} for g in gradients])
    before = copy.deepcopy(optimizer.state_dict()["state"])
    carry_out(model, moving, optimizer, act="move", said="")
    moved, wanted = (o.state_dict()["state"] for o in (optimizer, expected))
    changed = False
    for number, state in wanted.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() and key != "ax":
                torch.testing.assert_close(moved[number][key], value, rtol=1e-6, atol=1e-9)
                changed |= not torch.allclose(before[number][key], value, rtol=1e-3)
    squares = family == "sign_flip" and name in ("adagrad", "adadelta")
    assert changed == (name not in STATELESS and not squares)


def test_averaged_parameters_move_as_parameters_do() -> None:
    model = plain()
    moving = motion(model, "rescale")
    optimizer = torch.optim.ASGD(model.parameters(), 0.05, t0=1)
    train(model, optimizer, data(), 5)
    averages = {n: optimizer.state[p]["ax"].clone() for n, p in model.named_parameters()}
    carry_out(model, moving, optimizer, act="move", said="")
    for name, expected in moving.moved(averages).items():
        assert torch.allclose(optimizer.state[model.get_parameter(name)]["ax"], expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_every_family_are_those_at_the_new_point(name: str) -> None:
    """g(T theta) = (DT)^-T g(theta), and no unmoved gradient is."""
    model, given = network(name, torch.float64), batch(name, torch.float64)
    tried = set()
    for s in discover(model, given, loss_of):
        if s.status != "verified" or getattr(s, "equivariant", False):
            continue
        here = copy.deepcopy(model)
        loss_of(here, given).backward()
        before = {n: p.grad.clone() for n, p in here.named_parameters() if p.grad is not None}
        carry_out(here, motion_by(here, s, 0.3), act="move", said="")
        moved = {n: p.grad.clone() for n, p in here.named_parameters() if p.grad is not None}
        here.zero_grad()
        loss_of(here, given).backward()
        there = {n: p.grad for n, p in here.named_parameters() if p.grad is not None}
        size = torch.cat([g.flatten() for g in there.values()]).norm()
        for n in there:
            assert (moved[n] - there[n]).norm() < 1e-9 * size, (s.family, n)
        still = all(
            torch.equal(p, q) for p, q in zip(here.parameters(), model.parameters(), strict=True)
        )
        if s.family != "translation" and not still:
            assert any((before[n] - there[n]).norm() > 1e-6 * size for n in there), s.family
        tried.add(s.family)
    assert len(tried) >= 2


def test_a_window_of_accumulated_and_scaled_gradients_goes_on() -> None:
    model = plain()
    moving = motion(model, "rescale")
    x, y = data()
    halves = [(x[:8], y[:8]), (x[8:], y[8:])]
    scale = 1024.0
    (scale * loss_of(model, halves[0])).backward()
    carry_out(model, moving, act="move", said="")
    (scale * loss_of(model, halves[1])).backward()
    window = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    sum(scale * loss_of(model, half) for half in halves).backward()  # type: ignore[union-attr]
    for got, p in zip(window, model.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad)


@pytest.mark.parametrize("name", ["nesterov", "amsgrad", "rmsprop"])
def test_an_exception_between_any_two_writes_leaves_everything_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain()
    moving = motion(model, "rescale")
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, data(), 3)
    before = everything(model, optimizer)
    left = [0]

    def failing(self: write.Into) -> None:
        left[0] -= 1
        if left[0] < 0:
            self.target.zero_()
            raise KeyboardInterrupt
        self.target.copy_(self.new)

    monkeypatch.setattr(write.Into, "put", failing)
    for many in range(40):
        left[0] = many
        try:
            carry_out(model, moving, optimizer, act="move", said="")
            break
        except KeyboardInterrupt:
            assert same(before, everything(model, optimizer)), many
    assert many >= 9 and not same(before, everything(model, optimizer))


def test_an_event_that_fails_undoes_the_act(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    moving = motion(model, "rescale")
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, data(), 3)
    before = everything(model, optimizer)

    def failing(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(transaction, "announce", failing)
    with pytest.raises(OSError, match="disk full"):
        carry_out(model, moving, optimizer, act="move", said="")
    assert same(before, everything(model, optimizer))


def test_experts_change_places_with_all_that_is_theirs() -> None:
    """State that only some experts have, step counts too, goes where they go."""
    model, given = network("experts", torch.float64), batch("experts", torch.float64)
    own = dict(model.named_parameters())
    experts = next(s for s in discover(model, given, loss_of) if isinstance(s, ExpertPermutation))
    order = torch.tensor([1, 2, 0])
    moving = Exchange.of(experts, lambda t: experts.permuted(t, order), own)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for k, p in enumerate(own.values()):
        p.grad = torch.full_like(p, 1.0 + k)
    own["up.2.weight"].grad = None  # never routed to
    optimizer.step()
    own["up.1.weight"].grad = None
    optimizer.step()
    before = {n: copy.deepcopy(dict(optimizer.state.get(p, {}))) for n, p in own.items()}
    carry_out(model, moving, optimizer, act="move", said="")
    for target, source in ((0, 1), (1, 2), (2, 0)):
        got = optimizer.state[own[f"up.{target}.weight"]]
        want = before[f"up.{source}.weight"]
        assert got.keys() == want.keys()
        assert all(torch.equal(got[k], want[k]) for k in want)
        grad = own[f"up.{target}.weight"].grad
        assert (grad is None) == (source in (1, 2))
    assert before["up.0.weight"]["step"] != before["up.1.weight"]["step"]


def test_several_optimizers_and_parameters_in_none() -> None:
    model = plain()
    moving = motion(model, "rescale")
    first = torch.optim.SGD(model[0].parameters(), 0.1, momentum=0.9)
    second = torch.optim.Adam([model[2].weight], 0.01)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    first.step()
    second.step()
    at = {n: p.detach().clone() for n, p in model.named_parameters()}
    one = moving.cotangent(at, {n: torch.ones_like(p) for n, p in at.items()})
    carry_out(model, moving, [first, second], act="move", said="")
    assert torch.allclose(first.state[model[0].weight]["momentum_buffer"], one["0.weight"])
    expected = 1e-3 * one["2.weight"].square()
    assert torch.allclose(second.state[model[2].weight]["exp_avg_sq"], expected)


class Lion(torch.optim.Optimizer):
    """A stranger's."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            self.state[p]["mine"] = torch.ones_like(p)


class FullyShardedDataParallel(nn.Sequential):
    """By name."""


class DistributedDataParallel(nn.Module):
    """By name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class OptimizedModule(nn.Module):
    """By name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


REFUSED: dict[str, tuple[type[Exception], str, Callable[[nn.Sequential], dict[str, Any]]]] = {
    "a stranger's state": (
        TypeError, "keeps 'mine'", lambda m: {"optimizer": used(Lion(m.parameters()))},
    ),
    "second-order state": (TypeError, "LBFGS keeps", lambda m: {"optimizer": lbfgs(m)}),
    "another model's optimizer": (
        ValueError, "of others", lambda m: {"optimizer": torch.optim.SGD(plain().parameters())},
    ),
    "no optimizer at all": (TypeError, "a torch.optim.Optimizer", lambda m: {"optimizer": 3}),
    "overflow": (ValueError, "not be finite", lambda m: {"size": 800.0}),
    "vanishing rows": (ValueError, "cannot hold", lambda m: {"size": 9.0, "model": half(m)}),
    "a sharded model": (
        TypeError, "FullyShardedDataParallel", lambda m: {"model": FullyShardedDataParallel(*m)},
    ),
    "another model": (ValueError, "of this model", lambda m: {"model": nn.Linear(3, 3)}),
    "another width": (
        ValueError, "of this model",
        lambda m: {"model": nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6))},
    ),
    "sparse gradients": (TypeError, "sparse", lambda m: sparse(m)),
    "gradients with a graph": (TypeError, "a graph", lambda m: graph(m)),
    "parameters on meta": (TypeError, "on meta", lambda m: {"model": copy.deepcopy(m).to("meta")}),
    "not finite": (ValueError, "is not finite", lambda m: {"model": spoilt(m)}),
}  # fmt: skip


def used(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimizer.step()
    return optimizer


def lbfgs(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.LBFGS(model.parameters(), 1e-3, max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, data())
        loss.backward()
        return loss

    optimizer.step(closure)
    return optimizer


def sparse(model: nn.Sequential) -> dict[str, Any]:
    model[0].weight.grad = torch.ones(6, 4).double().to_sparse()
    return {}


def graph(model: nn.Sequential) -> dict[str, Any]:
    loss_of(model, data()).backward(create_graph=True)
    return {}


def half(model: nn.Sequential) -> nn.Module:
    return nn.Sequential(*(copy.deepcopy(m) for m in model)).half().apply(smaller)


@torch.no_grad()
def smaller(module: nn.Module) -> None:
    for p in module.parameters(recurse=False):
        p.mul_(1e-3)


def spoilt(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters())[0] = torch.nan
    return other


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_what_cannot_be_moved_is_refused_by_name_and_nothing_is_changed(case: str) -> None:
    kind, match, make = REFUSED[case]
    model = plain()
    given = make(model)
    moving = motion(plain(), "rescale")
    assert isinstance(moving, Flow)
    far = given.pop("size", 0.5) * torch.ones_like(moving.coefficients)
    target = given.pop("model", model)
    before = copy.deepcopy(dict(target.state_dict()))
    with pytest.raises(kind, match=match):
        carry_out(target, replace(moving, coefficients=far), act="move", said="", **given)
    if case not in ("parameters on meta", "not finite"):
        assert same(before, dict(target.state_dict()))


def test_wrappers_of_one_process_are_taken_off_and_several_processes_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = plain()
    assert live(DistributedDataParallel(model)) is model
    assert live(OptimizedModule(DistributedDataParallel(model))) is model
    monkeypatch.setattr(transaction, "processes", lambda: 2)
    with pytest.raises(ValueError, match="2 processes train together"):
        live(DistributedDataParallel(model))


def test_gradients_that_a_scaler_has_yet_to_see_may_be_infinite() -> None:
    model = plain()
    moving = motion(model, "rescale")
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.inf)
    carry_out(model, moving, act="move", said="")
    assert all(bool(p.grad.isinf().all()) for p in model.parameters() if p.grad is not None)
