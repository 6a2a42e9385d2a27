"""Loops as people write them, in which something once went unseen."""

import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import eqtoolbox as eq
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink

STEPS = 8


class Own(nn.Module):
    """It returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def batches(steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    drawn = range(steps)
    return [
        (torch.randn(32, 6, generator=rng), torch.randint(4, (32,), generator=rng)) for _ in drawn
    ]


def measured(records: list[Record]) -> set[int]:
    """Steps at which drifts were."""
    drifts = (r for r in records if r.name.startswith("conservation/drift"))
    return {r.step for r in drifts if r.status == "ok"}


@pytest.mark.parametrize("own", [False, True], ids=["criterion", "own loss"])
@pytest.mark.parametrize("place", [False, True], ids=["around", "in place"])
@pytest.mark.parametrize("when", [-1, 0, 3], ids=["before", "after attach", "in the midst"])
def test_what_is_compiled_is_watched_whenever_that_was(when: int, place: bool, own: bool) -> None:
    def train(watched: bool) -> tuple[list[Tensor], list[Record]]:
        torch.manual_seed(0)
        model, criterion, sink = Own() if own else net(), nn.CrossEntropyLoss(), MemorySink()
        optimizer, called = torch.optim.SGD(model.parameters(), lr=0.1), model

        def compiles() -> Any:
            if place:
                model.compile(backend="eager")
                return model
            return torch.compile(model, backend="eager")

        if when < 0:
            called = compiles()
        given = {} if own else {"criterion": criterion}
        options = {"schedule": 2, "budget": None, "sinks": [sink], "on_error": "raise"}
        monitor = eq.attach(called, optimizer, **options, **given) if watched else None
        for step, (x, y) in enumerate(batches()):
            if step == when:
                called = compiles()
            optimizer.zero_grad()
            (called(x, y) if own else criterion(called(x), y)).backward()
            optimizer.step()
        if monitor is not None:
            monitor.close()
        return [p.detach().clone() for p in model.parameters()], sink.records

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that one step was missed
        left, records = train(watched=True)
    expected, _ = train(watched=False)
    assert all(torch.equal(a, b) for a, b in zip(left, expected, strict=True))
    missed = {-1: set(), 0: {0}, 3: set() if place else {4}}[when]  # in place it shows in time
    assert measured(records) == {0, 2, 4, 6} - missed
    notes = {r.note for r in records if r.status == "not_applicable" and r.step in missed}
    assert all("compiled after attach" in n for n in notes if "loss" in n)


@pytest.mark.parametrize("place", [False, True], ids=["around", "in place"])
def test_a_criterion_compiled_after_attach_is_heard(place: bool) -> None:
    model, criterion, sink = net(), nn.CrossEntropyLoss(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"schedule": 2, "budget": None, "on_error": "raise"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, and that one step was missed
        with eq.attach(model, optimizer, criterion=criterion, sinks=[sink], **options):
            called: Any = criterion
            if place:
                criterion.compile(backend="eager")
            else:
                called = torch.compile(criterion, backend="eager")
            for x, y in batches():
                optimizer.zero_grad()
                called(model(x), y).backward()
                optimizer.step()
    assert measured(sink.records) == {2, 4, 6}


def test_forward_called_by_hand_is_said_to_be() -> None:
    model, criterion, sink = net(), nn.CrossEntropyLoss(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(model, optimizer, criterion=criterion, budget=None, sinks=[sink]):
        for x, y in batches(2):
            optimizer.zero_grad()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                criterion(model.forward(x), y).backward()
                optimizer.step()
    notes = {r.note for r in sink.records if r.name.startswith("curvature")}
    assert any("instead of its forward()" in note for note in notes)


def test_a_scripted_module_is_refused_in_words() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="model expected a module that takes hooks"):
        eq.attach(torch.jit.script(model), optimizer)
    with pytest.raises(TypeError, match="criterion expected a module that takes hooks"):
        eq.attach(model, optimizer, criterion=torch.jit.script(nn.CrossEntropyLoss()))


def test_a_traced_model_is_watched() -> None:
    model, sink = torch.jit.trace(net(), (batches()[0][0],)), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"schedule": 2, "budget": None, "on_error": "raise"}
    with eq.attach(model, optimizer, sinks=[sink], **options) as monitor:
        loss = monitor.loss(lambda m, x, y: F.cross_entropy(m(x), y))
        for x, y in batches():
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()
    assert {r.step for r in sink.records if r.name == "curvature/sharpness"} == {0, 2, 4, 6}


def test_a_packed_batch_is_a_batch() -> None:
    torch.manual_seed(0)
    model, sink = nn.LSTM(3, 4, batch_first=True), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"schedule": 2, "budget": None, "on_error": "raise"}
    with eq.attach(model, optimizer, sinks=[sink], **options) as monitor:
        loss = monitor.loss(lambda m, packed: m(packed)[0].data.square().mean())
        for _ in range(4):
            packed = pack_padded_sequence(torch.randn(5, 7, 3), [7, 6, 4, 3, 1], batch_first=True)
            optimizer.zero_grad()
            loss(model, packed).backward()
            optimizer.step()
    assert {r.step for r in sink.records if r.name == "curvature/sharpness"} == {0, 2}


def test_losses_inside_of_a_transform_say_so() -> None:
    model, criterion, sink = net(), nn.CrossEntropyLoss(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def single(params: Any, x: Tensor, y: Tensor) -> Tensor:
        return criterion(torch.func.functional_call(model, params, (x[None],)), y[None])

    each = torch.func.vmap(torch.func.grad(single), (None, 0, 0))

    def train() -> None:
        options: dict[str, Any] = {"schedule": 2, "budget": None, "sinks": [sink]}
        with eq.attach(model, optimizer, criterion=criterion, **options):
            for x, y in batches():
                found = each({n: p.detach() for n, p in model.named_parameters()}, x, y)
                for name, p in model.named_parameters():
                    p.grad = found[name].mean(0)
                optimizer.step()

    with pytest.warns(RuntimeWarning, match=r"torch\.func transform"):
        train()
    due = [r for r in sink.records if r.name.startswith("curvature/")]
    assert {r.step for r in due} == {0, 2, 4, 6}
    assert all("torch.func transform" in r.note for r in due)
    assert not [e for e in sink.events if "failed" in str(e)]


def test_a_loss_may_be_called_by_names() -> None:
    model, sink = net(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(model, optimizer, schedule=2, budget=None, sinks=[sink]) as monitor:
        loss = monitor.loss(lambda model, x, y: F.cross_entropy(model(x), y))
        for x, y in batches():
            optimizer.zero_grad()
            loss(y=y, model=model, x=x).backward()
            optimizer.step()
    assert measured(sink.records) == {0, 2, 4, 6}


class Experts(nn.Module):
    """One of two experts for each half of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0] > 0
        routes = ((self.one, first), (self.two, ~first))
        return torch.cat([expert(x[own]) for expert, own in routes if own.any()])


def test_an_expert_that_half_a_batch_does_not_ask_is_no_error() -> None:
    model, sink = Experts(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    x[:8, 0], x[8:, 0] = 1.0, -1.0
    with eq.attach(model, optimizer, schedule=2, budget=None, sinks=[sink], on_error="raise") as m:
        loss = m.loss(lambda model, x: model(x).square().mean())
        for _ in range(4):
            optimizer.zero_grad()
            loss(model, x).backward()
            optimizer.step()
    assert [r for r in sink.records if r.name == "vital/halves"]


def test_an_optimizer_made_anew_does_not_go_unsaid() -> None:
    model, criterion = net(), nn.CrossEntropyLoss()

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with eq.attach(model, optimizer, criterion=criterion, schedule=10, budget=None):
            for step, (x, y) in enumerate(batches(100)):
                if step == 5:
                    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()

    with pytest.warns(RuntimeWarning, match="the parameters move"):
        train()


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_closed_stream_stops_no_close(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    closed: list[bool] = []

    class Sink(MemorySink):
        def close(self) -> None:
            closed.append(True)

    monitor = eq.attach(model, optimizer, budget=None, sinks=[Sink()])
    loss: Callable[..., Tensor] = monitor.loss(lambda m, x, y: F.cross_entropy(m(x), y))
    for x, y in batches(2):
        loss(model, x, y).backward()
        optimizer.step()
    if stream is not None:
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    monitor.close()
    assert closed


def test_an_optimizer_that_steps_rarely_breaks_no_law() -> None:
    """Of parameters whose optimizer did not step no gradient was used: nothing is said of laws."""
    torch.manual_seed(0)
    model, sink = net(), MemorySink()
    often = torch.optim.SGD(model[0].parameters(), lr=0.1)
    rarely = torch.optim.SGD(model[2].parameters(), lr=0.1)
    options: dict[str, Any] = {"schedule": 1, "budget": None, "sinks": [sink]}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with eq.attach(model, [often, rarely], **options) as monitor:
            loss = monitor.loss(lambda m, x, y: F.cross_entropy(m(x), y))
            for step, (x, y) in enumerate(batches(12)):
                model.zero_grad()
                loss(model, x, y).backward()
                often.step()
                if step % 4 == 3:
                    rarely.step()
    assert monitor.step == 12
    assert not [r.name for r in sink.records if r.verdict == "violated"]
    assert {r.step for r in sink.records if r.name == "curvature/sharpness"} == set(range(12))
    judged = {r.step for r in sink.records if r.name == "conservation/first_order/rescale"}
    assert judged == {3, 7, 11}


def test_laws_of_a_gradient_that_was_changed_say_what_changed_it() -> None:
    model, sink = net(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"schedule": 1, "budget": None, "sinks": [sink]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with eq.attach(model, optimizer, **options) as monitor:
            loss = monitor.loss(lambda m, x, y: F.cross_entropy(m(x), y))
            for x, y in batches(4):
                optimizer.zero_grad()
                loss(model, x, y).backward()
                nn.utils.clip_grad_value_(model.parameters(), 1e-3)
                optimizer.step()
    laws = [r for r in sink.records if r.name == "conservation/first_order/rescale"]
    assert {r.verdict for r in laws} == {"violated"}
    assert all("not that of the loss" in r.note for r in laws if r.step)
