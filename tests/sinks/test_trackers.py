"""Numbers arrive in every tracker under their own step, and a failing one stops nothing."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.sinks.adapter import as_sink
from tests.conftest import blobs, mlp

NAME = "eqtoolbox/curvature/sharpness"


def train(*sinks: Any, run_dir: Path | None = None, each_step: Any = None, **options: Any) -> None:
    """Six steps, of which every second is measured."""
    torch.manual_seed(0)
    model, criterion = mlp(6, 8, 3), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = blobs()
    with eq.attach(
        model, optimizer, criterion=criterion, probes=[Curvature(k=1)], schedule=2, budget=None,
        sinks=sinks, run_dir=run_dir, **options,
    ):  # fmt: skip
        for _ in range(6):
            criterion(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            if each_step is not None:
                each_step()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    run = tmp_path_factory.mktemp("expected") / "run"
    train(run_dir=run)
    steps, values = eq.Run(run).series("curvature/sharpness")
    assert list(steps) == [0, 2, 4]
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def test_a_function_gets_one_dict_a_step(expected: dict[int, float]) -> None:
    calls: list[tuple[int, dict[str, float]]] = []
    train(lambda numbers, step: calls.append((step, numbers)))
    measured = {step: numbers[NAME] for step, numbers in calls if NAME in numbers}
    assert measured == expected
    assert len([step for step, numbers in calls if NAME in numbers]) == 3
    assert all(name.startswith("eqtoolbox/") for _, numbers in calls for name in numbers)


def test_an_object_with_log_and_numbers_that_are_none_are_left_out(
    expected: dict[int, float],
) -> None:
    class Tracker:
        def __init__(self) -> None:
            self.rows: dict[int, float] = {}

        def log(self, numbers: dict[str, float], *, step: int) -> None:
            assert all(value == value for value in numbers.values()), "NaN is no number"
            self.rows |= {step: numbers[NAME]} if NAME in numbers else {}

    tracker = Tracker()
    train(tracker)
    assert tracker.rows == expected


def test_tensorboard(tmp_path: Path, expected: dict[int, float]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    train(writer)
    curve = EventAccumulator(str(tmp_path)).Reload().Scalars(NAME)
    assert {e.step: pytest.approx(e.value, rel=1e-6) for e in curve} == expected
    writer.add_scalar("mine", 1.0)  # the writer stays the user's own
    writer.close()


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_on_its_own_axis_beside_the_users_logging(
    tmp_path: Path, expected: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    run = wandb.init(project="test", dir=tmp_path, mode="offline")
    step = iter(range(100, 1000, 100))
    train(run, each_step=lambda: run.log({"mine": 1.0}, step=next(step)))
    folder = Path(run.dir).parent
    run.finish()
    wandb.teardown()  # the file is complete when its writer has gone
    rows, metrics = wandb_rows(next(folder.glob("*.wandb")))
    ours = {int(r["eqtoolbox/step"]): r[NAME] for r in rows if NAME in r}
    assert ours == pytest.approx(expected)
    assert sum("mine" in r for r in rows) == 6, "no row of the user's was dropped"
    assert metrics["eqtoolbox/*"] == "eqtoolbox/step"


def records_of(file: Path) -> Iterator[bytes]:
    """Records of a W&B file: blocks of 32 KiB, each record with checksum, length and kind."""
    data, at, block, parts = file.read_bytes(), 7, 32768, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""


def wandb_rows(file: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """History rows and axes of an offline run, read from its own file."""
    from wandb.proto import wandb_internal_pb2

    rows, axes = [], {}
    for data in records_of(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
        if record.HasField("metric") and record.metric.glob_name:
            axes[record.metric.glob_name] = record.metric.step_metric
    return rows, axes


@pytest.mark.filterwarnings("ignore")
def test_mlflow_logs_to_the_run_that_was_active(
    tmp_path: Path, expected: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    with pytest.raises(ValueError, match=r"no MLflow run is active: call mlflow.start_run\(\)"):
        as_sink(mlflow)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    mlflow.set_experiment("test")
    with mlflow.start_run() as run:
        train(mlflow)
    rows = mlflow.MlflowClient().get_metric_history(run.info.run_id, NAME)
    assert {row.step: pytest.approx(row.value) for row in rows} == expected


@pytest.mark.filterwarnings("ignore")
def test_trackio_local(
    tmp_path: Path, expected: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("TRACKIO_TELEMETRY", "0")
    import trackio

    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path, raising=False)
    run = trackio.init(project="test", embed=False)
    train(trackio)
    trackio.finish()
    rows = trackio.SQLiteStorage.get_logs("test", run.name)
    assert {r["step"]: pytest.approx(r[NAME]) for r in rows if NAME in r} == expected


def test_a_failing_tracker_is_disabled_after_one_warning_and_the_rows_stay(
    tmp_path: Path, expected: dict[int, float]
) -> None:
    calls: list[int] = []

    def broken(numbers: dict[str, float], step: int) -> None:
        calls.append(step)
        raise ConnectionError("no route")

    with pytest.warns(
        RuntimeWarning, match="disabled, it raised ConnectionError: no route"
    ) as seen:
        train(broken, run_dir=tmp_path / "run")
    assert len(seen) == 1
    assert calls == [0]
    steps, values = eq.Run(tmp_path / "run").series("curvature/sharpness")
    assert dict(zip(steps.tolist(), values.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    "wrong", [3, "wandb", object(), eq.Sink, lambda: None, lambda numbers, epoch: None]
)
def test_what_cannot_log_is_refused_with_what_can(wrong: Any) -> None:
    model = mlp(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"sinks must each be an eqtoolbox.Sink.*SummaryWriter"):
        eq.attach(model, optimizer, sinks=[wrong])
    assert not optimizer._optimizer_step_post_hooks
