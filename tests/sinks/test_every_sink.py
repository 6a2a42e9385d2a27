"""The law of every sink in the room of sinks: a number arrives under its name and step, once."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import eqtoolbox as eq
from eqtoolbox import sinks
from eqtoolbox.record.record import Record
from eqtoolbox.record.sink import Sink
from eqtoolbox.sinks.aim import AimSink
from eqtoolbox.sinks.callable import CallableSink
from eqtoolbox.sinks.jsonl import RunDirectory
from eqtoolbox.sinks.live import LiveLine
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.sinks.mlflow import MlflowSink
from eqtoolbox.sinks.tensorboard import TensorBoardSink
from eqtoolbox.sinks.trackio import TrackioSink
from eqtoolbox.sinks.wandb import WandbSink

Arrived = list[tuple[int, str, float]]
Made = tuple[Sink, Callable[[], Arrived]]  # a sink, and what has arrived at its other end
SILENT = {LiveLine}  # shows main numbers to a person


class Tracker:
    """The other end of a tracker: its methods by their names in TensorBoard, W&B and MLflow."""

    def __init__(self) -> None:
        self.arrived: Arrived = []

    def log(self, numbers: dict[str, float], step: int | None = None) -> None:
        step = int(numbers.get("eqtoolbox/step", -1)) if step is None else step
        named = {n.removeprefix("eqtoolbox/"): v for n, v in numbers.items()}
        self.arrived += [(step, n, v) for n, v in named.items() if n != "step"]

    def add_scalar(self, name: str, value: float, global_step: int) -> None:
        self.log({name: value}, global_step)

    def log_metrics(self, numbers: dict[str, float], step: int, **how: Any) -> None:
        self.log(numbers, step)

    def track(self, value: float, name: str, step: int) -> None:
        self.log({name: value}, step)

    def active_run(self) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="run"))

    def define_metric(self, name: str, **how: Any) -> None: ...

    def flush(self) -> None: ...


def of_a_tracker(kind: Callable[[Any], Sink]) -> Made:
    tracker = Tracker()
    return kind(tracker), lambda: tracker.arrived


def of_a_function(folder: Path) -> Made:
    tracker = Tracker()
    return CallableSink(tracker.log), lambda: tracker.arrived


def of_memory(folder: Path) -> Made:
    sink = MemorySink()
    return sink, lambda: [(r.step, r.name, r.value) for r in sink.records]


def of_a_directory(folder: Path) -> Made:
    read = lambda: [(r.step, r.name, r.value) for r in eq.Run(folder / "run").records()]
    return RunDirectory(folder / "run"), read


SINKS: dict[type[Sink], Callable[[Path], Made]] = {
    CallableSink: of_a_function,
    MemorySink: of_memory,
    RunDirectory: of_a_directory,
    TensorBoardSink: lambda folder: of_a_tracker(TensorBoardSink),
    WandbSink: lambda folder: of_a_tracker(WandbSink),
    MlflowSink: lambda folder: of_a_tracker(MlflowSink),
    TrackioSink: lambda folder: of_a_tracker(TrackioSink),
    AimSink: lambda folder: of_a_tracker(AimSink),
}


def every_sink() -> Iterator[type[Sink]]:
    for file in pkgutil.iter_modules(sinks.__path__):
        module = importlib.import_module(f"{sinks.__name__}.{file.name}")
        for kind in vars(module).values():
            own = inspect.isclass(kind) and kind.__module__ == module.__name__
            if own and issubclass(kind, Sink) and not inspect.isabstract(kind):
                yield kind


def broken_law(sink: Sink, read: Callable[[], Arrived]) -> str:
    """What is wrong with what arrives, empty when nothing is."""
    given = [(3, "training/loss", 0.5), (3, "curvature/sharpness", 2.0), (4, "training/loss", 0.25)]
    for step, name, value in given:
        sink.write_all([Record(step=step, name=name, value=value)])
    sink.write(Record(step=4, name="curvature/sharpness", value=math.nan, status="failed"))
    sink.flush()
    at_once = [row for row in read() if row[2] == row[2]]
    sink.close()
    if sorted(at_once) != sorted(given):
        return f"after flush() of the step: {at_once}"
    if sorted(row for row in read() if row[2] == row[2]) != sorted(given):
        return "close() writes or loses numbers"
    return ""


@pytest.mark.parametrize("kind", SINKS, ids=lambda kind: kind.__name__)
def test_a_number_arrives_once_under_its_name_and_step(kind: type[Sink], tmp_path: Path) -> None:
    assert broken_law(*SINKS[kind](tmp_path)) == ""


def test_every_sink_is_under_the_law() -> None:
    assert set(every_sink()) - SILENT == set(SINKS), "one line in SINKS says how to read it back"


class Late(MemorySink):
    """Forgets the step that it is in."""

    def write(self, record: Record) -> None:
        super().write(Record(step=0, name=record.name, value=record.value))


class Twice(MemorySink):
    """Writes again when it closes."""

    def close(self) -> None:
        self.records += self.records


@pytest.mark.parametrize(("kind", "law"), [(Late, "after flush"), (Twice, "close")])
def test_the_law_sees_what_is_no_sink(kind: type[MemorySink], law: str) -> None:
    sink = kind()
    told = broken_law(sink, lambda: [(r.step, r.name, r.value) for r in sink.records])
    assert told.startswith(law)
