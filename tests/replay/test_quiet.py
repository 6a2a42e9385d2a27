"""What a loss says is said once, by the training; what it reads of what it says is there."""

import io
import logging
import sys
import threading
import warnings
from contextlib import redirect_stdout
from typing import Any
from warnings import warn

import pytest
from torch import Tensor, nn
from tqdm import tqdm

from eqtoolbox.replay.isolation import isolated
from eqtoolbox.replay.streams import random_streams
from eqtoolbox.replay.thread.quiet import quiet
from eqtoolbox.sinks.memory import MemorySink
from tests.neutrality.belongings import Batch, Net, cross_entropy
from tests.neutrality.test_python_state import trained

early = print
logger = logging.getLogger("a.user")


def _spoken(model: nn.Module, hidden: Tensor) -> None:
    print("printed")
    early("early")
    early("to errors", file=sys.stderr)
    sys.stdout.write("written")
    sys.stdout.writelines(["one", "two"])
    sys.stderr.write("errors")
    logger.warning("logged")
    tqdm.write("bar")
    for _ in tqdm(range(2)):
        pass
    if hidden.requires_grad:
        hidden.register_hook(lambda g: print("in the backward"))


def _speaking() -> Any:
    model = Net()
    bar = tqdm(total=100, mininterval=0.0)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        hidden = model.first(batch[0])
        _spoken(model, hidden)
        bar.update()
        return nn.functional.cross_entropy(model.second(hidden), batch[1])

    return model, loss, lambda: bar.n


@pytest.fixture
def logged() -> Any:
    lines: list[str] = []
    handler = logging.StreamHandler(sys.stderr)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_what_a_loss_prints_logs_and_writes_is_said_once(capsys: Any, logged: list[str]) -> None:
    said = []
    for surface in ("", "decorator"):
        logged.clear()
        before = vars(sys.stdout).copy(), vars(sys.stderr).copy()
        values = trained(_speaking, surface)
        assert (vars(sys.stdout), vars(sys.stderr)) == before, "streams are as they were"
        out, errors = capsys.readouterr()
        bars = errors.count("| 2/2")
        said.append([values, out, errors.count("errors"), bars, list(logged)])
    assert said[0] == said[1]
    assert said[0][1].count("in the backward") == 4
    assert said[0][3] == 4


@pytest.mark.parametrize("bound", [True, False])
def test_what_a_loss_warns_of_is_said_as_often_as_filters_let_it(bound: bool) -> None:
    def kind() -> Any:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            (warn if bound else warnings.warn)("of a loss")
            return cross_entropy(model, batch)

        return Net(), loss, lambda: None

    for action, times in (("always", 4), ("default", 1), ("once", 1)):
        globals().pop("__warningregistry__", None)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter(action)  # type: ignore[arg-type]
            trained(kind, "decorator")
        told = [str(w.message) for w in seen if "of a loss" in str(w.message)]
        assert len(told) == times, action


def test_a_warning_of_a_replay_alone_is_not_used_up() -> None:
    def speaks() -> None:
        warn("only later in the training", stacklevel=1)

    globals().pop("__warningregistry__", None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        with isolated(nn.Linear(2, 2)), random_streams():
            speaks()
        assert seen == []
        speaks()
    assert len(seen) == 1


def test_a_loss_that_records_its_own_warnings_or_prints_finds_them() -> None:
    def kind() -> Any:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            with (
                warnings.catch_warnings(record=True) as seen,
                redirect_stdout(io.StringIO()) as out,
            ):
                warnings.simplefilter("always")
                warn("one", stacklevel=1)
                print("text")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    warn("raised", stacklevel=1)
            except UserWarning:
                seen.append(None)  # type: ignore[arg-type]
            return cross_entropy(model, batch) * (len(seen) + len(out.getvalue()))

        return Net(), loss, lambda: None

    sink = MemorySink()
    assert trained(kind, "decorator", sink=sink) == trained(kind)
    ratios = [r.value for r in sink.records if r.name == "monitor/closure_grad_ratio"]
    assert ratios == pytest.approx([1.0] * 4, abs=1e-5)


def test_other_threads_and_probes_are_heard(capsys: Any) -> None:
    go = threading.Event()
    other = threading.Thread(target=lambda: (go.wait(), print("another thread")))
    other.start()
    with isolated(nn.Linear(2, 2)):
        print("a probe")
        with random_streams():
            print("the loss")
            go.set()
            other.join()
    assert capsys.readouterr().out == "a probe\nanother thread\n"


def test_streams_without_attributes_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        __slots__ = ("lines",)

        def __init__(self) -> None:
            self.lines: list[str] = []

        def write(self, text: str) -> int:
            self.lines.append(text)
            return len(text)

    bare = Bare()
    monkeypatch.setattr(sys, "stdout", bare)
    with isolated(nn.Linear(2, 2)), random_streams():
        print("heard")
    assert bare.lines == ["heard", "\n"]


def test_streams_exchanged_meanwhile_are_each_as_they_were() -> None:
    one, two = io.StringIO(), io.StringIO()
    with redirect_stdout(one):
        first = quiet()
        first.__enter__()
        with redirect_stdout(two), quiet():
            assert "write" in vars(two)
        assert vars(two) == {}
        first.__exit__(None, None, None)
    assert vars(one) == {}
