"""What a replay raises stays in it; what a signal raises reaches the loop, put back as it was."""

import asyncio
import contextlib
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.expect.deadline import OutOfTime, check, deadline
from eqtoolbox.replay.thread.scope import current
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.interrupts import Gate, for_the_loop, told
from eqtoolbox.watch.probe import Measurement
from tests.conftest import blobs, mlp
from tests.loops.test_faults import Loss, cross_entropy, train, unchanged, watched


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
                if current() is not None:
                    fails("loss")
                return cross_entropy(model, batch)

            return self.monitor.loss(loss_fn)

    sink = MemorySink()
    parameters, seen = train(Watch)
    assert unchanged(parameters)
    told_once = [s for s in seen if "nothing was measured" not in s]
    assert len(told_once) == 1
    assert type(error).__name__ in told_once[0]
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
    done = threading.Event()  # which a replay does not set back

    def kill() -> None:
        if not done.is_set():
            done.set()
            os.kill(os.getpid(), signal.SIGTERM)

    class Killed(Loss):
        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[Measurement]:
            torch.rand(1)
            if place == "probe":
                kill()
            yield from super().measure(snapshot, reference, rng)

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        if current() is not None and place == "loss":
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
    done = threading.Event()  # which a replay does not set back

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        if current() is not None and not done.is_set():
            done.set()
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
