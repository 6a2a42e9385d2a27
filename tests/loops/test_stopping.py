"""A probe ends when its time is up, and what it raises stays in it unless the loop is meant."""

import asyncio
import contextlib
import functools
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.capture.guests import evaluating
from eqtoolbox.deadline import OutOfTime, check, deadline
from eqtoolbox.integrations.attachment import Attachment
from eqtoolbox.interrupts import Gate, for_the_loop, told
from eqtoolbox.linalg.operator import MatrixOperator
from eqtoolbox.probe import Measurement
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry.actions import quarter_turn, trivial
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.group import Cyclic
from eqtoolbox.time_limit import FIRST, LEAST, TIMES, TimeLimit
from tests.conftest import blobs, mlp
from tests.loops.test_faults import STEPS, Loss, cross_entropy, train, unchanged, watched

SLOW = 0.02  # seconds of an evaluation that is made to take long


class Long(Loss):
    """Evaluates the loss many times, with a row after each."""

    headline = "last"
    evaluations = 200

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        for k in range(self.evaluations):
            loss = snapshot.objective.loss(snapshot.before)
            yield Measurement("loss", float(loss.detach()), target=str(k))
        yield Measurement("last", 1.0)


class Asleep(Loss):
    """Cannot be stopped: it evaluates nothing."""

    def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
        time.sleep(10 * SLOW)
        yield Measurement("loss", 1.0)


def slow(model: nn.Module, batch: Any) -> Tensor:
    """The loss, slow wherever a probe evaluates it."""
    if evaluating():
        time.sleep(SLOW)
    return cross_entropy(model, batch)


def train_slowly(probe: Any, steps: int = STEPS, **options: Any) -> tuple[Any, list[str], float]:
    """Records, warnings and the longest time that the probe took, of training with `slow`."""
    sink = MemorySink()

    class Watch:
        def __init__(self, model: nn.Module, optimizer: Any) -> None:
            probes = probe if isinstance(probe, dict) else [probe]
            given = {"probes": probes, "schedule": 1, "budget": None, **options}
            self.monitor = eq.attach(model, optimizer, sinks=[sink], **given)
            self.close = self.monitor.close

        def loss(self, _: Any) -> Any:
            return self.monitor.loss(slow)

    parameters, seen = train(Watch, steps=steps)
    assert all(torch.equal(a, b) for a, b in zip(parameters, train(steps=steps)[0], strict=True))
    took = [r.value for r in sink.records if r.name.startswith("cost/seconds")]
    return sink, seen, max(took)


# -- time ------------------------------------------------------------------------------------------


def test_a_probe_over_its_limit_stops_between_evaluations_and_keeps_its_rows() -> None:
    sink, seen, took = train_slowly(Long(), probe_timeout=5 * SLOW)
    assert took < 5 * SLOW + 0.5  # of 4 s
    rows = [r for r in sink.records if r.name.startswith("replay/loss/") and r.step == 0]
    assert 1 <= len(rows) <= 6
    assert {r.status for r in rows} == {"ok"}
    failed = [r for r in sink.records if r.name == "replay/last"]
    assert [(r.step, r.status) for r in failed] == [(0, "failed"), (1, "failed"), (2, "failed")]
    assert "more than its limit of 0.1 s; rows measured until then are kept" in failed[0].note
    assert len(seen) == 1
    assert "replay failed with OutOfTime: took 0.1" in seen[0]
    assert [e[3] for e in sink.events][-1] == "replay is disabled after 3 failures"


@pytest.mark.parametrize("limit", [None, 60.0, "auto"])
def test_within_its_limit_it_runs_to_its_end(limit: Any) -> None:
    probe = Long()
    probe.evaluations = 8
    sink, seen, _ = train_slowly(probe, steps=2, probe_timeout=limit)
    assert [r.value for r in sink.records if r.name == "replay/last"] == [1.0, 1.0]
    assert seen == []


@pytest.mark.parametrize("name", ["curvature", "discrete", "noether"])
def test_probes_stop_within_an_evaluation_of_their_limit(name: str) -> None:
    limit = 4 * SLOW
    sink, seen, _ = train_slowly({name: {}}, steps=1)
    unlimited = sum(r.value for r in sink.records if r.name.startswith("cost/seconds"))
    assert seen == []
    sink, seen, took = train_slowly({name: {}}, steps=1, probe_timeout=limit)
    assert unlimited > 2 * limit
    assert took < limit + 2 * SLOW + 0.1
    assert len(seen) == 1
    assert "more than its limit of 0.08 s" in seen[0]


def test_a_probe_that_cannot_be_stopped_is_told_of_and_ends_after_three_times() -> None:
    sink, seen, _ = train_slowly(Asleep(), probe_timeout=SLOW)
    rows = [r for r in sink.records if r.name == "replay/loss"]
    assert [(r.step, r.value) for r in rows] == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert all("more than its limit of 0.02 s" in r.note for r in rows)
    assert len(seen) == 1
    assert "replay failed with OutOfTime: took 0.2" in seen[0]


def test_the_budget_pays_for_a_probe_that_cannot_be_stopped() -> None:
    sink, seen, _ = train_slowly(Asleep(), budget=0.05)
    assert [r.step for r in sink.records if r.name == "replay/loss" and r.status == "ok"] == [0]
    assert seen == []


def test_products_stop_at_the_deadline() -> None:
    A = MatrixOperator(torch.eye(2))
    with deadline(60.0):
        A({"x": torch.ones(2)})
    with deadline(0.0), pytest.raises(OutOfTime, match="time is over"):
        A({"x": torch.ones(2)})
    A({"x": torch.ones(2)})


def test_group_elements_stop_at_the_deadline() -> None:
    x, flips = torch.ones(2, 1, 4, 4), Equivariance(Cyclic(4), quarter_turn, trivial)
    with deadline(60.0):
        equivariance_error(lambda x: x.sum((1, 2)), x, flips)
    with deadline(0.0), pytest.raises(OutOfTime, match="time is over"):
        equivariance_error(lambda x: x.sum((1, 2)), x, flips)


def test_a_deadline_holds_in_its_own_scope_and_thread() -> None:
    with deadline(0.0):
        with deadline(None):
            check()
        with pytest.raises(OutOfTime, match="time is over"):
            check()
        asyncio.run(asyncio.to_thread(check))
    check()


def test_a_limit_is_a_multiple_of_the_longest_run_so_far() -> None:
    limit = TimeLimit()
    assert limit.of("a") == FIRST
    limit.learn("a", 0.1)
    assert limit.of("a") == LEAST
    limit.learn("a", 10.0)
    limit.learn("a", 2.0)
    assert limit.of("a") == TIMES * 10.0
    assert limit.of("b") == FIRST
    assert "before at most 10 s" in limit.exceeded("a", 201.0)
    assert TimeLimit(None).of("a") is None
    assert TimeLimit(3).of("a") == 3


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), True, "long", [1]])
def test_what_is_no_time_limit_is_refused(limit: Any) -> None:
    model = mlp(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"probe_timeout is a number of seconds above 0.*got"):
        eq.attach(model, optimizer, probe_timeout=limit)
    with pytest.raises(ValueError, match=r"probe_timeout is a number of seconds above 0.*got"):
        Attachment(probe_timeout=limit)


# -- what is raised --------------------------------------------------------------------------------


class Own(BaseException):
    """No Exception, as the outcomes of test runners are."""


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


RAISED = [
    SystemExit(3),
    GeneratorExit(),
    asyncio.CancelledError(),
    Own("own"),
    Unspeakable(),
    pytest.exit.Exception("outcome"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("place", ["probe", "loss", "schedule", "sink"])
def test_what_a_replay_raises_stays_in_it(error: BaseException, place: str) -> None:
    def fails(here: str) -> None:
        if here == place:
            raise error

    class Failing(Loss):
        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
            snapshot.training.model.eval()
            torch.rand(1)
            fails("probe")
            yield from super().measure(snapshot, reference, rng)

    class Raising(MemorySink):
        def write(self, record: Any) -> None:
            fails("sink")

    def schedule(step: int) -> bool:
        fails("schedule")
        return True

    class Watch:
        def __init__(self, model: nn.Module, optimizer: Any) -> None:
            attach = watched(sink, Failing(), schedule=schedule)
            self.monitor = attach(model, optimizer)
            self.monitor.add_sink(Raising())
            self.close = self.monitor.close

        def loss(self, function: Any) -> Any:
            def loss_fn(model: nn.Module, batch: Any) -> Tensor:
                if evaluating():
                    fails("loss")
                return cross_entropy(model, batch)

            return self.monitor.loss(loss_fn)

    sink = MemorySink()
    parameters, seen = train(Watch)
    assert unchanged(parameters)
    assert len(seen) == 1
    assert f"{type(error).__name__}" in seen[0]
    if place in ("probe", "loss"):
        rows = [r for r in sink.records if r.name == "replay/loss"]
        assert {r.status for r in rows} == {"failed"}
        assert rows[0].note == told(error)


def test_probe_now_records_what_a_replay_raises() -> None:
    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        sys.exit(3)

    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(model, optimizer, loss_fn=loss_fn, probes=[Loss()]) as monitor:
        monitor.observe(blobs())
        with pytest.warns(RuntimeWarning, match="replay failed with SystemExit: 3"):
            (row, *_) = monitor.probe_now()
    assert (row.name, row.status) == ("replay/loss", "failed")


def _exits(number: int, frame: FrameType | None) -> None:
    sys.exit(143)


class _Handler:
    def __call__(self, *given: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as handlers do that end a program once
        raise RuntimeError("stop now")

    def method(self, number: int, frame: FrameType | None) -> None:
        raise Own("from a method")


HANDLERS: dict[str, Any] = {
    "function": _exits,
    "lambda": lambda *_: sys.exit(143),
    "partial": functools.partial(lambda code, *_: sys.exit(code), 143),
    "object": _Handler(),
    "method": _Handler().method,
}


@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("place", ["probe", "loss"])
def test_what_a_signal_handler_raises_reaches_the_loop(kind: str, place: str) -> None:
    due = [True]

    def kill() -> None:
        if due and due.pop():
            os.kill(os.getpid(), signal.SIGTERM)

    class Killed(Loss):
        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
            torch.rand(1)
            if place == "probe":
                kill()
            yield from super().measure(snapshot, reference, rng)

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        if evaluating() and place == "loss":
            kill()
        return cross_entropy(model, batch)

    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink = MemorySink()
    monitor = watched(sink, Killed())(model, optimizer)
    before = signal.signal(signal.SIGTERM, HANDLERS[kind])
    random = torch.get_rng_state()
    try:
        raised = []
        for _ in range(3):
            monitor.loss(loss_fn)(model, blobs()).backward()
            try:
                optimizer.step()
            except (SystemExit, RuntimeError, Own) as error:
                raised.append(error)
    finally:
        signal.signal(signal.SIGTERM, before)
        monitor.close()
    assert len(raised) == 1
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert [r.step for r in sink.records if r.name == "replay/loss"] == [1, 2]


def _caught(raising: Callable[[], Any]) -> BaseException:
    try:
        raising()
    except BaseException as error:
        return error
    raise AssertionError("it raises")


def test_a_function_that_is_given_a_frame_is_no_signal_handler() -> None:
    def exits(frame: FrameType, depth: int = 0) -> None:
        caller = sys._getframe(1)
        assert caller is frame
        sys.exit(1)

    assert not for_the_loop(_caught(lambda: exits(sys._getframe())))
    assert not for_the_loop(_caught(lambda: _exits(15, None)))
    assert for_the_loop(_caught(lambda: _exits(15, sys._getframe())))
    assert for_the_loop(KeyboardInterrupt())


def test_an_interrupt_in_the_loss_leaves_the_step_count_right() -> None:
    due = [True]

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        if evaluating() and due and due.pop():
            os.kill(os.getpid(), signal.SIGINT)
        return cross_entropy(model, batch)

    class Watch:
        def __init__(self, model: nn.Module, optimizer: Any) -> None:
            self.monitor = watched(sink, Loss())(model, optimizer)
            self.close = self.monitor.close

        def loss(self, _: Any) -> Any:
            return self.monitor.loss(loss_fn)

    sink = MemorySink()
    parameters, seen = train(Watch)
    assert unchanged(parameters)
    assert seen == ["KeyboardInterrupt"]
    assert [r.step for r in sink.records if r.name == "replay/loss"] == [1, 2, 3, 4, 5]


class Scope:
    """A scope that is left in two moves, with a signal between them."""

    def __init__(self, *, times: int = 1) -> None:
        self.times, self.left = times, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), signal.SIGINT)
        self.left = True


def test_a_signal_does_not_cut_the_exit_of_a_scope_short() -> None:
    scope, reached = Scope(), []
    with pytest.raises(KeyboardInterrupt), Gate():
        with scope:
            pass
        reached.append("the next check")
        check()
        reached.append("never")
    assert scope.left
    assert reached == ["the next check"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_gate_it_does() -> None:
    scope = Scope()
    with pytest.raises(KeyboardInterrupt), scope:
        pass
    assert not scope.left


def test_a_second_signal_does_not_wait() -> None:
    scope = Scope(times=2)
    with pytest.raises(KeyboardInterrupt), Gate(), scope:
        pass
    assert not scope.left


def test_a_signal_waits_for_the_end_of_a_gate_that_holds() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), Gate() as gate:
        gate.holding = True
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("the end")
    assert reached == ["the end"]
    with pytest.raises(KeyboardInterrupt), Gate():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("never")
    assert reached == ["the end"]
    check()


def test_a_deadline_holds_after_a_signal_that_did_not_wait_for_it() -> None:
    with pytest.raises(KeyboardInterrupt), Gate() as gate:
        gate.holding = True
        os.kill(os.getpid(), signal.SIGINT)
    with deadline(60.0):
        check()
    with deadline(0.0), pytest.raises(OutOfTime, match="time is over"):
        check()


# -- processes -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_that_trains_on_writes_nothing_and_closes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach = watched(MemorySink(), Loss(), run_dir=tmp_path / "run")
    monitor = attach(model, optimizer)
    loss_fn = monitor.loss(cross_entropy)

    def go(steps: int) -> None:
        for _ in range(steps):
            loss_fn(model, blobs()).backward()
            optimizer.step()

    go(2)
    child = os.fork()
    if child == 0:
        said = 9
        with contextlib.suppress(BaseException), warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            go(3)
            monitor.close()
            said = sum("this process was forked" in str(w.message) for w in seen)
        os._exit(said)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert eq.Run(tmp_path / "run").info["finished"] is None
    go(2)
    monitor.close()
    steps = [r.step for r in eq.Run(tmp_path / "run").records() if r.name == "replay/loss"]
    assert steps == [0, 1, 2, 3]
