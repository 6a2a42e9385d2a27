"""The guard: names a step before the loss blows up, caps rates, and gives them back."""

import copy
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox import act
from eqtoolbox.act.edge import EdgeReading
from eqtoolbox.act.guards import Guard
from eqtoolbox.demos.digits import load_digits
from eqtoolbox.probes import Conservation, Curvature, EquivarianceError, Tracking
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry import Equivariance
from eqtoolbox.symmetry.actions.action import quarter_turn, trivial
from eqtoolbox.symmetry.groups.group import Cyclic
from eqtoolbox.watch.threshold import threshold


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits().train
    return x[:100], y[:100]


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.ReLU if kind == "relu" else nn.Tanh
    widths = (64, *(32,) * (2 if kind == "relu" else 4))
    hidden = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), layer())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 10))


def losses(
    data: tuple[Tensor, Tensor], kind: str, lr: float, do: Any, steps: int, above: float = 1.0
) -> tuple[list[float], Guard | None, list[str]]:
    """Full batch, up to the step at which the loss is lost; with what was warned of."""
    model, found, held, monitor = network(kind), [], None, None
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss_fn = lambda m, b: F.cross_entropy(m(b[0]), b[1])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if do is not None:
            monitor = eq.attach(model, optimizer, probes=[Tracking()], schedule=1, budget=None)
            loss_fn, held = monitor.loss(loss_fn), act.guard(monitor, do=do, above=above)
        for _ in range(steps):
            loss = loss_fn(model, data)
            found.append(float(loss.detach()))
            if not found[-1] < 2 * found[0]:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if monitor is not None:
            monitor.close()
    return found, held, [str(w.message) for w in said]


@pytest.mark.parametrize(("kind", "lr"), [("relu", 2.0), ("relu", 8.0), ("tanh", 4.0)])
def test_the_step_is_named_before_the_loss_blows_up(
    digits: tuple[Tensor, Tensor], kind: str, lr: float
) -> None:
    found, held, said = losses(digits, kind, lr, "warn", 12)
    assert held is not None and held.seen.past is not None
    assert [s for s in said if f"step {held.seen.past} is past the edge of stability" in s]
    grown = [t for t, loss in enumerate(found) if not loss < 1.05 * found[0]]
    assert grown and held.seen.past < grown[0]
    if lr == 8.0:  # the twins that must stay silent
        assert losses(digits, kind, lr, "warn", 3, above=1e6)[2] == []
        assert losses(digits, kind, 0.05, "warn", 3)[2] == []


@pytest.mark.parametrize(("kind", "lr"), [("relu", 8.0), ("relu", 50.0), ("tanh", 50.0)])
def test_a_cap_holds_rates_up_to_50_in_full_batch(
    digits: tuple[Tensor, Tensor], kind: str, lr: float
) -> None:
    found, held, _ = losses(digits, kind, lr, "cap", 30)
    assert len(found) == 30 and found[-1] < 0.75 * found[0]
    assert held is not None and held.seen.capped == 29
    assert len(losses(digits, kind, lr, None, 30)[0]) < 10  # the twin that must fail


# -- on a quadratic, where everything is known ---------------------------------------------------


class Bowl(nn.Module):
    """The loss theta^T H theta / 2 with eigenvalues 10, 3, 1."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.register_buffer("curvature", torch.tensor([10.0, 3.0, 1.0], dtype=torch.float64))

    def forward(self, scale: Tensor) -> Tensor:
        return (scale * self.curvature * self.theta.square()).sum() / 2


BATCH = torch.ones((), dtype=torch.float64)


def bowl(
    optimizer: Any = None, probe: Any = None, do: str = "cap", **attach: Any
) -> tuple[Bowl, torch.optim.Optimizer, Any, Guard, MemorySink]:
    model, sink = Bowl(), MemorySink()
    made = (optimizer or (lambda p: torch.optim.SGD(p, lr=1.0)))(model.parameters())
    attach = {"schedule": 1, "budget": None, "on_error": "raise"} | attach
    probes = [Tracking() if probe is None else probe]
    monitor = eq.attach(model, made, probes=probes, sinks=[sink], **attach)
    monitor.loss_fn = monitor.loss(lambda m, b: m(b))
    return model, made, monitor, act.guard(monitor, do=do), sink  # type: ignore[arg-type]


def taken(model: Bowl, optimizer: torch.optim.Optimizer, monitor: Any) -> float:
    """The rate at which a step of plain SGD was taken."""
    before = model.theta.detach().clone()
    optimizer.zero_grad()
    monitor.loss_fn(model, BATCH).backward()
    optimizer.step()
    assert model.theta.grad is not None
    return float(((before - model.theta) / model.theta.grad).detach()[2])


def test_a_step_is_capped_at_what_the_curvature_bears_and_the_first_one_waits() -> None:
    model, optimizer, monitor, held, sink = bowl()
    found = []
    for lr in (1.0, 1.0, 0.1, 1.0):
        optimizer.param_groups[0]["lr"] = lr
        found.append(taken(model, optimizer, monitor))
        assert optimizer.param_groups[0]["lr"] == lr
    assert found == pytest.approx([1e-6, 0.2, 0.1, 0.2], rel=1e-3)
    assert held.seen.capped == 2 and held.seen.least == pytest.approx(0.2, rel=1e-3)
    rates = [r.value for r in sink.records if r.name == "training/learning_rate"]
    assert rates == pytest.approx(found, rel=1e-9), "the monitor sees the rate that was taken"
    assert held.seen.past == 0 and held.seen.above == 3, "at the rate of the user"
    monitor.close()


def test_the_limit_and_the_momentum_scale_the_cap() -> None:
    for momentum, nesterov, c in ((0.5, False, 3.0), (0.5, True, 1.5)):
        make = lambda p, m=momentum, n=nesterov: torch.optim.SGD(p, lr=1.0, momentum=m, nesterov=n)
        model, optimizer, monitor, held, sink = bowl(make)
        held.limit = 0.5
        for _ in range(3):
            taken(model, optimizer, monitor)
        rates = [r.value for r in sink.records if r.name == "training/learning_rate"]
        assert rates[1:] == pytest.approx([0.5 * c / 10] * 2, rel=1e-3)
        monitor.close()


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_adaptive_steps_are_capped_by_the_stability_in_their_own_metric(make: Any) -> None:
    probe = Curvature(k=1, smallest=False)
    model, optimizer, monitor, _, sink = bowl(lambda p: make(p, lr=50.0), probe)
    for _ in range(4):
        taken(model, optimizer, monitor)
    of = lambda name: [r.value for r in sink.records if r.name == name]
    rates, stabilities = of("training/learning_rate"), of("curvature/stability")
    assert rates[0] == pytest.approx(50e-6)
    for t in (1, 2, 3):
        expected = min(50.0, rates[t - 1] / stabilities[t - 1])
        assert rates[t] == pytest.approx(expected, rel=2e-2)
    monitor.close()


def test_each_group_is_capped_and_the_largest_counts() -> None:
    reading = EdgeReading(step=0, name="tracking/sharpness", value=4.0, error=1.0, rates=(1.0, 1.0))
    ratio = EdgeReading(step=0, name="curvature/stability", value=2.0, error=0.0, rates=(1.0, 0.0))
    group = eq.watch.snapshot.ParameterGroup
    two = [group(names=(), lr=lr, weight_decay=0.0, momentum=0.0) for lr in (0.5, 2.0)]
    assert reading.at(two) == 4.0
    assert reading.shares(two, 1.0) == pytest.approx((0.8, 0.2)), "each at 2 / (4 + 1)"
    assert ratio.at(two) == math.inf and ratio.shares(two, 1.0) == (0.0, 0.0), "a group at rest"
    assert ratio.at(two[:1]) == 1.0 and ratio.shares(two[:1], 0.5) == (0.5,)
    assert threshold(two[0]) == 2.0


def test_schedules_and_checkpoints_see_the_rate_of_the_user() -> None:
    model, optimizer, monitor, _, _ = bowl()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for t in range(4):
        taken(model, optimizer, monitor)
        assert optimizer.state_dict()["param_groups"][0]["lr"] == pytest.approx(0.9**t)
        scheduler.step()
    monitor.close()


def test_a_rate_that_is_a_tensor_is_the_same_tensor_afterwards() -> None:
    rate = torch.tensor(1.0, dtype=torch.float64)
    model, optimizer, monitor, _, _ = bowl(lambda p: torch.optim.SGD(p, lr=rate))
    found = [taken(model, optimizer, monitor) for _ in range(2)]
    assert found == pytest.approx([1e-6, 0.2], rel=1e-3)
    assert optimizer.param_groups[0]["lr"] is rate and float(rate) == 1.0
    monitor.close()


def test_decay_is_capped_along_and_the_budget_of_the_charges_closes() -> None:
    torch.manual_seed(0)
    model, sink = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0, weight_decay=1e-3)
    batch = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    probes = [Tracking(), Conservation(growth=0.0)]
    with eq.attach(model, optimizer, probes=probes, schedule=1, budget=None, sinks=[sink]) as mon:
        loss_fn = mon.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
        act.anchor(optimizer)
        held = act.guard(mon, do="cap")
        for _ in range(6):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
        assert held.seen.capped >= 4
    closures = [r for r in sink.records if r.name.startswith("conservation/closure")]
    assert closures and all(r.verdict == "holds" for r in closures)


# -- neutrality, states, checkpoints -------------------------------------------------------------


def test_a_guard_that_warns_leaves_training_as_it_is() -> None:
    found = []
    for do in (None, "warn"):
        model, optimizer = network("relu"), None
        optimizer = torch.optim.SGD(model.parameters(), lr=4.0, momentum=0.5)
        state, torch_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        x, y = torch.randn(30, 64), torch.randint(0, 10, (30,))
        torch.set_rng_state(torch_state)
        with eq.attach(model, optimizer, probes=[Tracking()], schedule=1, budget=None) as monitor:
            loss_fn = monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                held = act.guard(monitor, do=do) if do else None
                hooks = len(optimizer._optimizer_step_post_hooks)
                for _ in range(5):
                    optimizer.zero_grad()
                    loss_fn(model, (x, y)).backward()
                    optimizer.step()
        assert held is None or hooks == 1, "no hook of its own"
        found.append((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
        assert not torch.equal(state["1.weight"], model.state_dict()["1.weight"])
        torch.manual_seed(0)
    one, other = found
    assert all(torch.equal(a, other[0][n]) for n, a in one[0].items())
    assert str(one[1]) == str(other[1]) and torch.equal(one[2], other[2])


def test_it_says_what_it_is_and_why_it_is_not() -> None:
    model, optimizer, monitor, held, _ = bowl(schedule=4)
    assert held.state == "waiting for a first measurement"
    taken(model, optimizer, monitor)
    assert held.state == "guarding"
    taken(model, optimizer, monitor)
    with pytest.warns(RuntimeWarning, match="capped by a measurement of 2 steps before it"):
        taken(model, optimizer, monitor)
    assert held.state == "guarding by a measurement 3 steps old"
    assert "capped   2 steps, to 0.2 of the rate" in repr(held)
    assert "tracking/sharpness 10" in repr(held)
    monitor.detach()
    assert held.state == "inert: the monitor is detached"
    assert taken(model, optimizer, monitor) == pytest.approx(1.0)
    monitor.close()
    assert held.state == "inert: the monitor is closed"
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    held.remove()
    assert held.state == "removed"


def test_without_a_number_steps_wait_thrice_and_then_are_taken_and_that_is_said() -> None:
    model, optimizer, monitor, held, sink = bowl(on_error="warn")
    optimizer.zero_grad()
    model(BATCH).backward()  # a loss that the monitor does not see
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(4):
            optimizer.step()
    assert any("no curvature was measured in 3 steps" in str(w.message) for w in said)
    assert float(model.theta.detach()[2]) == pytest.approx(0.0, abs=1e-5), "the last one at lr 1"
    assert held.state.startswith("blind: step 3 has no tracking/sharpness, not_applicable")
    assert any("act.guard" in str(e) for e in sink.events)
    monitor.close()


def test_what_the_budget_skips_is_said() -> None:
    _, _, monitor, held, _ = bowl()
    row = eq.Record(step=3, name="tracking/sharpness", value=math.nan, status="skipped_budget")
    for sink in monitor._journal._sinks:
        sink.write(row)
    assert held.state == "blind: step 3 has no tracking/sharpness, skipped_budget"
    monitor.close()


def test_a_removed_guard_caps_no_more_and_with_does_it_too() -> None:
    model, optimizer, monitor, held, _ = bowl()
    with held:
        taken(model, optimizer, monitor)
        assert taken(model, optimizer, monitor) == pytest.approx(0.2, rel=1e-3)
    assert taken(model, optimizer, monitor) == pytest.approx(1.0)
    monitor.close()


@pytest.mark.filterwarnings("ignore:eqtoolbox")
def test_a_step_that_raises_gives_the_rate_back_at_the_next() -> None:
    model, optimizer, monitor, _, _ = bowl(on_error="warn")
    taken(model, optimizer, monitor)

    def broken() -> Any:
        raise KeyError("data")

    with pytest.raises(KeyError):
        optimizer.step(broken)
    assert taken(model, optimizer, monitor) == pytest.approx(0.2, rel=1e-3)
    assert optimizer.param_groups[0]["lr"] == 1.0
    monitor.close()


def test_a_resumed_run_caps_its_next_step_as_this_one_would() -> None:
    model, optimizer, monitor, held, _ = bowl()
    for _ in range(3):
        taken(model, optimizer, monitor)
    parts = (model, optimizer, monitor, held)
    saved = [copy.deepcopy(part.state_dict()) for part in parts]
    expected = taken(model, optimizer, monitor)
    monitor.close()
    for loaded in (True, False):
        others = bowl()
        for part, state in zip(others[: 4 if loaded else 3], saved, strict=False):
            part.load_state_dict(copy.deepcopy(state))
        rate = taken(others[0], others[1], others[2])
        others[2].close()
        assert (rate == expected and torch.equal(others[0].theta, model.theta)) == loaded


@pytest.mark.parametrize(
    ("state", "match"),
    [({}, "seen"), ({"seen": {"x": 1}, "reading": None}, "x"), (3, "state must be a dict")],
)
def test_a_state_of_something_else_is_refused(state: Any, match: str) -> None:
    _, _, monitor, held, _ = bowl()
    with pytest.raises((KeyError, TypeError, ValueError), match=match):
        held.load_state_dict(state)
    monitor.close()


# -- bad input -----------------------------------------------------------------------------------


def monitored(optimizer: Any, probe: Any) -> Iterator[Any]:
    model = Bowl()
    with eq.attach(model, optimizer(model.parameters()), probes=[probe]) as monitor:
        yield monitor


TURN = EquivarianceError(symmetries=[Equivariance(Cyclic(4), quarter_turn, trivial)])


@pytest.mark.parametrize(
    ("optimizer", "probe", "match"),
    [
        ("SGD", TURN, r"got equivariance; add Tracking\(\) or Curvature\(\)"),
        ("Adam", Tracking(), r"got tracking; add Curvature\(k=1, smallest=False\).* own metric"),
    ],
)
def test_without_a_probe_of_the_curvature_it_says_which_to_add(
    optimizer: str, probe: Any, match: str
) -> None:
    for monitor in monitored(lambda p: getattr(torch.optim, optimizer)(p, lr=0.1), probe):
        with pytest.raises(ValueError, match=match):
            act.guard(monitor)


def test_other_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for monitor in monitored(lambda p: torch.optim.SGD(p, lr=0.1), Tracking()):
        for given, match in (
            ({"above": 0.0}, "above must be a positive"),
            ({"do": "x"}, "do must"),
        ):
            with pytest.raises((TypeError, ValueError), match=match):
                act.guard(monitor, **given)
        with pytest.raises((TypeError, ValueError), match="monitor must be a Monitor"):
            act.guard(monitor.optimizer)
        monkeypatch.setattr("eqtoolbox.act.edge.processes", lambda: 2)
        with pytest.raises(ValueError, match="one process, got 2"):
            act.guard(monitor, do="cap")
        act.guard(monitor, do="warn")
        monitor.detach()
        with pytest.raises(ValueError, match="a monitor that is attached"):
            act.guard(monitor)


def test_several_optimizers_are_warned_of_and_not_capped() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    both = [torch.optim.SGD(m.parameters(), lr=0.1) for m in model]
    with eq.attach(model, both, probes=[Tracking()]) as monitor:
        with pytest.raises(ValueError, match="expected one optimizer, got 2"):
            act.guard(monitor, do="cap")
        assert act.guard(monitor).state == "waiting for a first measurement"
