"""The anchor: decay towards theta_0 is what it says, for every optimizer, and leaves nothing."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import optim as opt

import eqtoolbox as eq
from eqtoolbox import act
from eqtoolbox.act.anchors import Anchor
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.sinks.memory import MemorySink

Make = Callable[[list[Any]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: opt.SGD(p, lr=0.1, weight_decay=0.3),
    "momentum": lambda p: opt.SGD(p, lr=0.1, weight_decay=0.3, momentum=0.9, dampening=0.5),
    "nesterov": lambda p: opt.SGD(p, lr=0.1, weight_decay=0.3, momentum=0.9, nesterov=True),
    "foreach": lambda p: opt.SGD(p, lr=0.1, weight_decay=0.3, momentum=0.9, foreach=True),
    "maximize": lambda p: opt.SGD(p, lr=0.01, weight_decay=0.3, maximize=True),
    "adam": lambda p: opt.Adam(p, lr=0.02, weight_decay=0.3),
    "amsgrad": lambda p: opt.Adam(p, lr=0.02, weight_decay=0.3, amsgrad=True),
    "adam-maximize": lambda p: opt.Adam(p, lr=0.02, weight_decay=0.3, maximize=True, foreach=True),
    "adam-fused": lambda p: opt.Adam(p, lr=0.02, weight_decay=0.3, fused=True),
    "adamw": lambda p: opt.AdamW(p, lr=0.02, weight_decay=0.3),
    "adamw-amsgrad": lambda p: opt.AdamW(p, lr=0.02, weight_decay=0.3, amsgrad=True, foreach=True),
    "adamw-fused": lambda p: opt.AdamW(p, lr=0.02, weight_decay=0.3, fused=True),
    "nadam": lambda p: opt.NAdam(p, lr=0.02, weight_decay=0.3),
    "nadam-beside": lambda p: opt.NAdam(p, lr=0.02, weight_decay=0.3, decoupled_weight_decay=True),
    "radam": lambda p: opt.RAdam(p, lr=0.02, weight_decay=0.3),
    "radam-beside": lambda p: opt.RAdam(p, lr=0.02, weight_decay=0.3, decoupled_weight_decay=True),
    "rmsprop": lambda p: opt.RMSprop(p, lr=0.01, weight_decay=0.3, momentum=0.5, centered=True),
    "adagrad": lambda p: opt.Adagrad(p, lr=0.1, weight_decay=0.3, lr_decay=0.1),
    "adadelta": lambda p: opt.Adadelta(p, lr=0.5, weight_decay=0.3),
    "adamax": lambda p: opt.Adamax(p, lr=0.02, weight_decay=0.3),
    "asgd": lambda p: opt.ASGD(p, lr=0.1, weight_decay=0.3, lambd=0.0),
    "muon": lambda p: opt.Muon([w for w in p if w.dim() == 2], lr=0.02, weight_decay=0.3),
}


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(20, 5, dtype=dtype), torch.randint(0, 3, (20,))


def steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    count: int = 5,
    closure: bool = False,
    loss_fn: Any = None,
) -> None:
    x, y = data(next(model.parameters()).dtype)
    loss_fn = loss_fn or (lambda m, b: F.cross_entropy(m(b[0]), b[1]))

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model, (x, y))
        loss.backward()
        return loss

    for _ in range(count):
        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()


def theta_0(held: Anchor, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [held._point(i, p) for i, p in enumerate(params)]


def moved_apart(make: Make, wrong: float = 1.0) -> tuple[nn.Module, nn.Module]:
    """Anchored, and without an anchor in coordinates whose zero is theta_0: the same training."""
    anchored, shifted = network(), network()
    optimizer = make(list(anchored.parameters()))
    held = act.anchor(optimizer, scale=0.5, seed=3)
    steps(anchored, optimizer)
    plain = make(list(shifted.parameters()))
    params = [p for group in plain.param_groups for p in group["params"]]
    points = [wrong * t for t in theta_0(held, optimizer)]
    x, y = data()
    for _ in range(5):
        plain.zero_grad()
        F.cross_entropy(shifted(x), y).backward()
        with torch.no_grad():
            for p, t in zip(params, points, strict=True):
                p.sub_(t)
            plain.step()
            for p, t in zip(params, points, strict=True):
                p.add_(t)
    return anchored, shifted


def apart(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "muon" or hasattr(opt, "Muon")])
def test_an_anchored_step_is_a_step_in_coordinates_whose_zero_is_theta_0(name: str) -> None:
    bound = 2e-3 if name == "muon" else 1e-11  # whose products are in bfloat16
    assert apart(*moved_apart(OPTIMIZERS[name])) < bound
    assert apart(*moved_apart(OPTIMIZERS[name], wrong=-1.0)) > 10 * bound  # the twin that must fail


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "adam-fused"])
@pytest.mark.parametrize("closure", [False, True])
def test_gradients_are_the_same_tensors_with_the_same_numbers(name: str, closure: bool) -> None:
    model, beside = network(), network()
    optimizer, plain = (OPTIMIZERS[name](list(m.parameters())) for m in (model, beside))
    act.anchor(optimizer)
    steps(beside, plain, 1, closure)
    seen: list[Any] = []
    x, y = data()

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        seen[:] = [p.grad for p in model.parameters()]
        return loss

    optimizer.step(evaluate) if closure else (evaluate(), optimizer.step())
    assert all(p.grad is g for p, g in zip(model.parameters(), seen, strict=True))
    pairs = zip(model.parameters(), beside.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)
    assert apart(model, beside) > 1e-4


def test_what_does_not_decay_or_step_is_not_pulled() -> None:
    model, beside = network(), network()

    def made(m: nn.Sequential) -> torch.optim.Optimizer:
        groups = [
            {"params": m[0].parameters(), "weight_decay": 0.0},
            {"params": m[2].parameters(), "weight_decay": 0.4},
        ]
        return torch.optim.AdamW(groups, lr=0.1)

    optimizer, plain = made(model), made(beside)
    act.anchor(optimizer)
    for m, o in ((model, optimizer), (beside, plain)):
        o.zero_grad()
        F.cross_entropy(m(data()[0]), data()[1]).backward()
        m[2].bias.grad = None
        o.step()
    assert apart(model[0], beside[0]) == 0.0
    assert torch.equal(model[2].bias, beside[2].bias)
    assert float((model[2].weight - beside[2].weight).detach().abs().max()) > 1e-4


def test_schedules_of_rate_and_decay_are_followed_and_new_groups_are_pulled() -> None:
    w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = torch.optim.AdamW([w], lr=0.5, weight_decay=0.2)
    held = act.anchor(optimizer)
    v = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer.add_param_group({"params": [v], "weight_decay": 1.0})
    w.grad, v.grad = torch.zeros_like(w), torch.zeros_like(v)
    optimizer.step()
    here, there = theta_0(held, optimizer)
    assert torch.allclose(w, 0.1 * here, atol=1e-12) and torch.allclose(v, 0.5 * there, atol=1e-12)
    optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"] = 1.0, 1.0
    optimizer.step()  # lr gamma = 1: at theta_0, wherever it was
    assert torch.allclose(w, here, atol=1e-12)


def test_rates_may_be_tensors() -> None:
    found = []
    for lr in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.3, foreach=False)
        act.anchor(optimizer)
        steps(model, optimizer)
        found.append(model)
    assert apart(*found) < 1e-12


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw"])
def test_a_resumed_run_goes_on_bit_for_bit(name: str) -> None:
    model = network(torch.float32)
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    held = act.anchor(optimizer, seed=5)
    steps(model, optimizer, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), held.state_dict()))
    steps(model, optimizer, 3)
    for seed, same in ((5, True), (6, True), (6, False)):
        again = network(torch.float32)
        other = OPTIMIZERS[name](list(again.parameters()))
        resumed = act.anchor(other, seed=seed)
        again.load_state_dict(saved[0])
        other.load_state_dict(copy.deepcopy(saved[1]))
        if same:
            resumed.load_state_dict(saved[2])
        steps(again, other, 3)
        assert (apart(model, again) == 0.0) == same


def test_a_state_of_another_model_is_refused_whole() -> None:
    model = network()
    held = act.anchor(torch.optim.AdamW(model.parameters(), weight_decay=0.1), seed=2)
    before = held.state_dict()
    other = {"scale": 0.5, "seed": 4, "points": {0: torch.zeros(2)}}
    with pytest.raises(ValueError, match=r"shape \(2,\) for parameter 0"):
        held.load_state_dict(other)
    with pytest.raises(KeyError, match="seed"):
        held.load_state_dict({"scale": 0.5})
    assert held.state_dict() == before


def test_no_global_stream_is_drawn_from_and_the_seed_decides() -> None:
    state = torch.get_rng_state()
    points = []
    for seed, dtype in ((1, torch.float64), (1, torch.float32), (2, torch.float64)):
        w = nn.Parameter(torch.zeros(2000, dtype=dtype))
        optimizer = torch.optim.SGD([w], lr=1.0, weight_decay=1.0)
        points += theta_0(act.anchor(optimizer, scale=0.3, seed=seed), optimizer)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(points[0].float(), points[1]) and not torch.equal(points[0], points[2])
    assert abs(float(points[0].std()) / 0.3 - 1) < 4 / (2 * 2000) ** 0.5


def test_a_removed_anchor_leaves_the_plain_optimizer() -> None:
    model, beside = network(), network()
    optimizer, plain = (OPTIMIZERS["adam"](list(m.parameters())) for m in (model, beside))
    with act.anchor(optimizer) as held:
        pass
    assert "removed" in repr(held) and not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    steps(model, optimizer)
    steps(beside, plain)
    assert apart(model, beside) == 0.0
    held.remove()
    act.anchor(optimizer)


def test_a_step_that_a_gradient_scaler_skips_does_not_pull() -> None:
    for fused in (False, True):
        for name in ("SGD", "AdamW"):
            model = network(torch.float32)
            make = getattr(torch.optim, name)
            optimizer = make(model.parameters(), lr=0.1, weight_decay=0.3, fused=fused)
            act.anchor(optimizer)
            scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
            before = copy.deepcopy(model)
            scaler.scale(F.cross_entropy(model(data(torch.float32)[0]), data()[1])).backward()
            model[0].weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            assert apart(model, before) == 0.0


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_the_scale_of_a_gradient_scaler_does_not_scale_the_pull(kind: str) -> None:
    found = []
    for scale in (None, 1024.0):
        model = network(torch.float32)
        make = getattr(torch.optim, kind)
        optimizer = make(model.parameters(), lr=0.1, weight_decay=0.3, fused=True)
        act.anchor(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(data(torch.float32)[0]), data()[1])).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(model)
    assert apart(*found) < 1e-5
    pairs = zip(found[0].parameters(), found[1].parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in pairs)


# -- with a monitor ---------------------------------------------------------------------------


def relu_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()


def watched(name: str, first: str, closure: bool) -> tuple[MemorySink, nn.Module]:
    """Anchored and watched, `first` says which comes first."""
    model, sink = relu_network(), MemorySink()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    held = act.anchor(optimizer, scale=0.5) if first == "anchor" else None
    with eq.attach(
        model,
        optimizer,
        probes=[Conservation(growth=0.0)],
        schedule=2,
        budget=None,
        sinks=[sink],
        on_error="raise",
    ) as monitor:
        held = held or act.anchor(optimizer, scale=0.5)
        loss_fn = monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
        steps(model, optimizer, 6, closure, loss_fn)
    return sink, model


def of(sink: MemorySink, name: str) -> list[float]:
    return [r.value for r in sink.records if r.name == name and r.status == "ok"]


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_monitor_sees_the_losses_gradient_and_the_whole_step_in_either_order(
    name: str, closure: bool
) -> None:
    alone = relu_network()
    optimizer = OPTIMIZERS[name](list(alone.parameters()))
    act.anchor(optimizer, scale=0.5)
    steps(alone, optimizer, 6)
    for first in ("anchor", "monitor"):
        sink, model = watched(name, first, closure)
        assert apart(model, alone) == 0.0, "training is as without a monitor"
        (cosine,) = of(sink, "monitor/closure_grad_cos")
        assert cosine > 1 - 1e-12
        laws = [r for r in sink.records if r.name.startswith("conservation/first_order")]
        assert laws and all(r.verdict == "holds" for r in laws)
        closures = [r for r in sink.records if r.name.startswith("conservation/closure")]
        assert closures and all(r.verdict == "holds" for r in closures)
        assert sum("act.anchor" in str(e) for e in sink.events) == 1
        if name == "sgd":  # drift = symmetry + decay + finite step + the pull, in the optimizer's
            assert abs(of(sink, "conservation/optimizer/rescale")[0]) > 1e-4


def test_without_looking_first_a_monitor_would_take_the_pull_for_the_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The twin that must fail."""
    monkeypatch.setattr("eqtoolbox.watch.course.look_first", lambda optimizer: None)
    with pytest.raises(RuntimeWarning, match="another gradient than the training step"):
        watched("sgd", "anchor", False)


# -- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: torch.optim.LBFGS(p), "got LBFGS, whose step is its own"),
        (lambda p: torch.optim.SGD(p, lr=0.1), "weight_decay > 0, got none"),
        (lambda p: torch.optim.Adafactor(p, weight_decay=0.1), "got Adafactor"),
    ],
)
def test_what_cannot_be_anchored_is_refused_by_name(make: Make, match: str) -> None:
    optimizer = make(list(network().parameters()))
    with pytest.raises(ValueError, match=match):
        act.anchor(optimizer)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_a_step_of_ones_own_and_a_second_anchor_are_refused() -> None:
    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            return super().step(closure)

    class Same(torch.optim.SGD):
        pass

    params = list(network().parameters())
    with pytest.raises(ValueError, match="got Own, whose step is its own"):
        act.anchor(Own(params, lr=0.1, weight_decay=0.1))
    held = act.anchor(same := Same(params, lr=0.1, weight_decay=0.1))
    with pytest.raises(ValueError, match="has an anchor already"):
        act.anchor(same)
    assert "SGD" in repr(held)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"scale": 0.0}, "scale must be a positive number, got 0.0"),
        ({"scale": "a"}, "scale must be a positive number"),
        ({"seed": 0.5}, "seed must be an integer"),
    ],
)
def test_arguments_are_checked(given: dict[str, Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        act.anchor(torch.optim.SGD(network().parameters(), lr=0.1, weight_decay=0.1), **given)
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer"):
        act.anchor(network())


def test_a_wrapper_is_anchored_inside_and_several_are_refused() -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    make, params = OPTIMIZERS["sgd"], list(network().parameters())
    inner = make(params)
    assert act.anchor(Wrapper(inner)).optimizer is inner
    with pytest.raises(ValueError, match="one optimizer, got 2"):
        act.anchor([make(params), make(params)])


@pytest.mark.filterwarnings("ignore:.*record_function")
def test_a_compiled_step_is_pulled_alike() -> None:
    found = []
    for compiled in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3)
        act.anchor(optimizer)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(data()[0]), data()[1]).backward()
            step()
        found.append(model)
    assert apart(*found) < 1e-11
