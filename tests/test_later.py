"""Steps that nobody waits for: launched as they end, read as the next one starts, and the same."""

import math
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import eqtoolbox as eq
from eqtoolbox.linalg.parcel import Parcel
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch import later
from eqtoolbox.watch.acts import announce
from eqtoolbox.watch.budget import LOSS, Budget
from eqtoolbox.watch.capture.caught import Caught, sent
from eqtoolbox.watch.monitor import Monitor
from eqtoolbox.watch.vitals.hearing import Hearing
from eqtoolbox.weights.charges.change import Rates
from eqtoolbox.weights.charges.charges import Charges
from tests.laws.members import point
from tests.laws.test_forms import EVERY

STEPS = 24
Between = Callable[[int, Monitor, Any], object]  # what a loop does after each step


class Pictures(nn.Module):
    """A convolution with batch statistics, rescaled units and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


class Attention(nn.Module):
    """Queries and keys, a normalisation whose epsilon shows, a bias that shifts all outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(18, 12), nn.LayerNorm(12, eps=1e-2)
        self.queries, self.keys = nn.Linear(12, 4, bias=False), nn.Linear(12, 4, bias=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.inner(x.flatten(2).transpose(1, 2).reshape(len(x), 2, 18)))
        return self.head(F.scaled_dot_product_attention(self.queries(x), self.keys(x), x)[:, 0])


class Forgetful(torch.optim.SGD):
    """Throws its gradients away while it steps: nobody may take them for those it was given."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for group in self.param_groups:
            for p in group["params"] if group.get("forgets") else ():
                p.grad.zero_()
        return result


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-3)


def apart(model: nn.Module) -> torch.optim.Optimizer:
    """At two rates: budgets have a cause of their own for it."""
    head, rest = [model.head.weight], [p for n, p in model.named_parameters() if n != "head.weight"]
    return torch.optim.SGD([{"params": head, "lr": 0.02}, {"params": rest}], 0.1)


def forgetful(model: nn.Module) -> torch.optim.Optimizer:
    forgets = Forgetful(model.parameters(), 0.1)
    type(forgets).__module__ = "torch.optim.sgd"  # as good as torch's own, for all that one can see
    return forgets


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that were launched, while this device passes for one that works on its own."""
    found: list[int] = []
    launch, read = later.ReadLater._launch, Parcel._read
    launching = [False]

    def counted(self: Any, step: int, before: Any) -> bool:
        launching[0] = True
        made = launch(self, step, before)
        launching[0] = False
        found.extend([step] if made else [])
        return made

    def guarded(self: Parcel) -> list[Tensor]:
        assert not launching[0], "something was read as the step ended"
        return read(self)

    monkeypatch.setattr(later, "works_apart", lambda tensors: True)
    monkeypatch.setattr(later.ReadLater, "_launch", counted)
    monkeypatch.setattr(Parcel, "_read", guarded)
    return found


def train(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    model: Callable[[], nn.Module] = Pictures,
    schedule: int = 1,
    between: Between | None = None,
    closes: bool = True,
    **options: Any,
) -> tuple[list[Record], list[Any], Monitor, nn.Module]:
    torch.manual_seed(0)
    net, sink = model(), MemorySink()
    rule = optimizer(net)
    probes = [Conservation()]
    given = {"probes": probes, "schedule": schedule, "budget": None, "sinks": [sink]} | options
    monitor = eq.attach(net, rule, **given)
    loss = monitor.loss(lambda model, x, y: F.cross_entropy(model(x), y))
    rng = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        x = torch.randn(8, 3, 6, 6, generator=rng)
        rule.zero_grad()
        loss(net, x[:, :, :4, :3].contiguous(), torch.randint(4, (8,), generator=rng)).backward()
        rule.step()
        if between is not None:
            between(step, monitor, rule)
    if closes:
        monitor.close()
    return sink.records, sink.events, monitor, net


def told(records: list[Record]) -> dict[tuple[int, str], tuple[Any, ...]]:
    """What is said at every step, but for what it took."""
    return {
        (r.step, r.name): (
            repr(r.value), repr(r.floor), repr(r.stderr), r.status, r.verdict, r.note, repr(r.facts)
        )
        for r in records
        if not r.name.startswith("cost/")
    }  # fmt: skip


def same(launched: list[int], expected: int | None = None, **given: Any) -> None:
    """A run that is read later says what one that waits does."""
    later_on, events, *_ = train(**given)
    assert len(launched) == expected if expected is not None else launched
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(later, "works_apart", lambda tensors: False)
        at_once, others, *_ = train(**given)
    assert told(later_on) == told(at_once)
    assert events == others


@pytest.mark.parametrize("schedule", [1, 7])
@pytest.mark.parametrize("model", [Pictures, Attention])
@pytest.mark.parametrize("optimizer", [sgd, adamw, apart])
def test_it_says_what_a_run_says_that_waits(
    launched: list[int], optimizer: Any, model: Any, schedule: int
) -> None:
    same(launched, (STEPS - 1) // schedule, optimizer=optimizer, model=model, schedule=schedule)


def test_nothing_is_launched_where_there_is_nothing_to_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: on a CPU everything is measured at once."""
    monkeypatch.setattr(later.ReadLater, "_launch", lambda *_: pytest.fail("it was launched"))
    assert told(train()[0])


def test_a_gradient_that_did_not_stay_is_none_that_was_given(launched: list[int]) -> None:
    """It is known only when it is read: then there is no budget, and copies are made from then."""

    def forgets(step: int, monitor: Monitor, rule: Any) -> None:
        rule.param_groups[0]["forgets"] = step >= 8

    same(launched, 9, optimizer=forgetful, between=forgets)


def test_steps_that_break_are_told_alike(launched: list[int]) -> None:
    def breaks(step: int, monitor: Monitor, rule: Any) -> None:
        if step == 12:
            rule.param_groups[0]["lr"] = math.inf

    same(launched, between=breaks)


def test_a_gradient_that_is_not_finite_is_told_alike(launched: list[int]) -> None:
    def breaks(step: int, monitor: Monitor, rule: Any) -> None:
        if step == 12:
            first = rule.param_groups[0]["params"][0]
            first.register_hook(lambda g: g * math.nan)
            rule.param_groups[0]["lr"] = 0.0

    same(launched, between=breaks, optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1))


def test_steps_that_move_nothing_are_told_alike(launched: list[int]) -> None:
    def rests(step: int, monitor: Monitor, rule: Any) -> None:
        rule.param_groups[0]["lr"] = 0.0 if step % 3 == 1 else 0.1

    same(launched, between=rests, optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1))


def test_what_moves_parameters_between_steps_is_no_step(launched: list[int]) -> None:
    """As clipping does: whether the step moved any is known as it ends."""

    def clips(step: int, monitor: Monitor, rule: Any) -> None:
        rule.param_groups[0]["lr"] = 0.0 if step % 3 == 1 else 0.1
        with torch.no_grad():
            for p in monitor.model.parameters():
                p.clamp_(-0.3, 0.3)

    same(launched, between=clips, optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1))


def test_parameters_that_are_frozen_begin_anew(launched: list[int]) -> None:
    def freezes(step: int, monitor: Monitor, rule: Any) -> None:
        if step == 9:
            monitor.model.hidden.bias.requires_grad_(False)

    same(launched, between=freezes)


def test_an_act_comes_after_the_step_before_it(launched: list[int]) -> None:
    def rescales(step: int, monitor: Monitor, rule: Any) -> None:
        if step == 9:
            by = {"hidden.weight": 3.0, "hidden.bias": 3.0, "head.weight": 1 / 3}
            own = dict(monitor.model.named_parameters())
            before = {n: own[n].detach().clone() for n in by}
            with torch.no_grad():
                for name, factor in by.items():
                    own[name].mul_(factor)
            after = {n: own[n].detach() for n in by}
            announce(monitor.model, "rescale", "the hidden layer times 3", before, after)

    same(launched, between=rescales)


@pytest.mark.parametrize(
    "ask",
    [
        lambda monitor: monitor.state_dict(),
        lambda monitor: monitor.latest("conservation/drift/rescale"),
        lambda monitor: monitor.detach(),
        lambda monitor: monitor.close(),
        lambda monitor: monitor.pass_on(lambda sink: None),
        lambda monitor: monitor.count_from(100),
    ],
)
def test_who_asks_is_told_of_the_last_step(
    launched: list[int], ask: Callable[[Monitor], Any]
) -> None:
    records, _, monitor, _ = train(closes=False)
    before = len(records)
    assert max(r.step for r in records if r.name.startswith("conservation")) == STEPS - 2
    ask(monitor)
    fresh = [r for r in records[before:] if r.name.startswith("conservation")]
    assert fresh
    assert {r.step for r in fresh} == {STEPS - 1}


def test_a_run_goes_on_from_a_step_that_was_not_read_yet(launched: list[int]) -> None:
    saved: list[Any] = []

    def saves(step: int, monitor: Monitor, rule: Any) -> None:
        if step == 11:
            saved.append(monitor.state_dict())

    train(between=saves)
    train()
    (state,) = saved
    assert state["step"] == 12
    assert state["references"]["conservation"]["measured"] == 11


def test_nothing_more_is_held_meanwhile(launched: list[int]) -> None:
    """No gradient, no batch; the copies of the parameters are the ones of every due step."""
    held: list[Any] = []

    def looks(step: int, monitor: Monitor, rule: Any) -> None:
        params = rule.param_groups[0]["params"]
        grads = [weakref.ref(p.grad) for p in params]
        rule.zero_grad()
        memory = {t.data_ptr() for own in monitor._taken._memory.values() for t in own.values()}
        waiting = monitor._later._launched
        if waiting is not None and waiting.measured is not None:
            snapshot = waiting.measured.snapshot
            assert {t.data_ptr() for t in snapshot.before.values()} <= memory
            assert snapshot.measured is None
            assert snapshot.training is None
        held.append([g() for g in grads if g() is not None])

    train(between=looks)
    assert launched
    assert not any(held)


def test_the_loss_alone_is_read_later_too(
    launched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at most due steps of a run whose budget leaves the probes out."""
    all_first = lambda self, due, step, waiting=(): [*due] if step == 0 else [LOSS]
    monkeypatch.setattr(Budget, "choose", all_first)

    def losses() -> dict[tuple[int, str], tuple[Any, ...]]:
        found = told(train(schedule=2)[0])
        return {k: v for k, v in found.items() if k[1] in ("training/loss", "vital/losses")}

    read_later = losses()
    assert launched == list(range(2, STEPS, 2))
    monkeypatch.setattr(later, "works_apart", lambda tensors: False)
    assert losses() == read_later
    assert {step for step, name in read_later if name == "training/loss"} == {0, *launched}


def test_a_probe_that_cannot_ask_is_told_and_measures_at_once(
    launched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conservation, "ask", lambda *_: 1 / 0)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        records, events, *_ = train()
    assert not launched
    drifts = {
        r.step for r in records if r.name == "conservation/drift/rescale" and r.status == "ok"
    }
    assert drifts == set(range(STEPS))
    assert any("ZeroDivisionError" in str(e) for e in events)


def test_its_time_is_paid_once_and_points_are_counted(launched: list[int]) -> None:
    began = time.perf_counter()
    records, _, monitor, _ = train()
    whole = time.perf_counter() - began
    took = [r for r in records if r.name == "cost/seconds/conservation"]
    assert [r.step for r in took] == list(range(STEPS))
    assert monitor._budget.points == {"conservation": (STEPS, STEPS)}
    assert sum(r.value for r in took) <= monitor._budget.spent <= whole


# -- what is launched waits for no device: meta tensors cannot be read ----------------------------


class Crossings(TorchDispatchMode):
    """Notes operations between tensors of two devices, each of which waits for both."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        leaves = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, Tensor)]
        homes = {t.device.type for t in leaves if t.numel() and (t.dim() or "copy" in str(func))}
        if len(homes) > 1:
            self.found.append(str(func))
        return made


@pytest.mark.parametrize("sketch", [False, True])
@pytest.mark.parametrize("lr", [[0.1, 0.1], [0.1, 0.2]], ids=["one rate", "two"])
def test_charges_are_launched_without_a_word_from_the_host(sketch: bool, lr: list[float]) -> None:
    away = {n: t.to("meta") for n, t in point(0).items()}
    members = [m for m in EVERY.values() if m.form.apart]
    charges = Charges(members, away, sketch=sketch)
    assert not charges.meet
    rates = Rates(
        lr={n: lr[i % 2] for i, n in enumerate(away)},
        decay={n: 0.01 * (i % 3) for i, n in enumerate(away)},
    )
    for last in (False, True):  # the first time indices are brought there
        parcel, crossings = Parcel(), Crossings()
        with crossings:
            charges.read(away, parcel)
            charges.passed(away, away, away, rates, parcel=parcel)
            parcel.send()
        assert not (last and crossings.found), crossings.found


def test_those_whose_parts_meet_say_so() -> None:
    away = {n: t.to("meta") for n, t in point(0).items()}
    meeting = [m for m in EVERY.values() if not m.form.apart]
    assert meeting
    assert Charges(meeting, away).meet


def test_losses_are_sent_without_being_read() -> None:
    hearing, parcel = Hearing(), Parcel()
    number = torch.zeros((), device="meta")
    hearing._new[False].append(number)
    crossings = Crossings()
    with crossings:
        hearing.sent(False, parcel)
        caught = Caught(None, value=number)  # type: ignore[arg-type]
        caught.weight = number
        assert sent([caught], parcel) is not None
        parcel.send()
    assert not crossings.found
    complex_one = Caught(None, value=torch.zeros((), dtype=torch.complex64))  # type: ignore[arg-type]
    assert sent([complex_one], Parcel()) is None
