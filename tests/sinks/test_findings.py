"""Findings, the page and histograms reach every tracker, once, and stop nothing."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.record.record import Record
from eqtoolbox.record.sink import Sink
from tests.conftest import blobs, mlp
from tests.sinks.test_trackers import records_of

DISEASE, WEIGHT = "diverged", "eqtoolbox/histogram/weight/0.weight"


def diverge(tracker: Any, run_dir: Path | None, steps: int = 40, **options: Any) -> nn.Module:
    """A training that breaks down within ten steps."""
    torch.manual_seed(0)
    model, criterion, (x, y) = mlp(6, 8, 3), nn.CrossEntropyLoss(), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=300.0)
    with eq.attach(
        model, optimizer, criterion=criterion, probes="light", schedule=1, budget=None,
        sinks=[tracker], run_dir=run_dir, **options,
    ):  # fmt: skip
        for _ in range(steps):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    return model


class Seen(Sink):
    hears = shows = True

    def __init__(self) -> None:
        self.told: list[tuple[int, str, str, str]] = []
        self.ends: list[tuple[str, str, Path | None]] = []

    def write(self, record: Record) -> None:
        assert not self.ends, "nothing is written after the end"

    def found(self, step: int, level: str, title: str, text: str) -> None:
        self.told.append((step, level, title, text))

    def conclude(self, level: str, text: str, page: Path | None) -> None:
        self.ends.append((level, text, page))


def test_an_alarm_is_told_once_while_the_run_goes_on_and_all_at_its_end(tmp_path: Path) -> None:
    seen = Seen()
    diverge(seen, tmp_path / "run")
    (told,) = [t for t in seen.told if t[2] == DISEASE]
    assert told[0] < 39 and told[1] == "alarm" and "Try: " in told[3]
    ((level, text, page),) = seen.ends
    assert level == "alarm" and "something is badly wrong" in text
    assert page == tmp_path / "run" / "report.html" and page.stat().st_size > 100_000
    assert eq.Run(tmp_path / "run").info["finished"]


def test_without_a_run_directory_or_a_tracker_that_hears_nothing_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    diverge(seen, None, steps=20)
    assert not seen.told and not seen.ends
    from eqtoolbox.attach.telling import Telling

    monkeypatch.setattr(Telling, "reads", lambda self: pytest.fail("a look without a listener"))
    diverge(lambda numbers, step: None, tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("method", ["found", "conclude"])
def test_a_tracker_that_cannot_take_a_finding_costs_one_warning(
    tmp_path: Path, method: str
) -> None:
    seen, broken = Seen(), Seen()

    def fail(*given: Any) -> None:
        raise ConnectionError("no route")

    setattr(broken, method, fail)
    with pytest.warns(RuntimeWarning, match="Seen is disabled, it raised ConnectionError") as said:
        model = diverge(broken, tmp_path / "a")
    assert len(said) == 1
    again = diverge(seen, tmp_path / "b")
    assert seen.ends
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def test_a_page_that_cannot_be_made_costs_the_page_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> Path:
        raise ImportError("write_page needs plotly")

    monkeypatch.setattr("eqtoolbox.report.page.write_page", fail)
    seen = Seen()
    diverge(seen, tmp_path / "run", steps=20)
    assert [(level, page) for level, _, page in seen.ends] == [("alarm", None)]


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path / "board"))
    diverge(writer, tmp_path / "run", histograms=True)
    writer.close()
    board = EventAccumulator(str(tmp_path / "board"), {"histograms": 0}).Reload()
    texts = {
        tag: [e.tensor_proto.string_val[0].decode() for e in board.Tensors(tag)]
        for tag in board.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }
    assert len([t for t in texts["eqtoolbox/alerts/text_summary"] if DISEASE in t]) == 1
    assert "Verdict" in texts["eqtoolbox/findings/text_summary"][0]
    drawn = board.Histograms(WEIGHT)[0].histogram_value
    assert drawn.num == 48 == sum(drawn.bucket)
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    (event,) = board.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    (category,) = layout.category
    assert [chart.title for chart in category.chart] == ["training", "curvature", "symmetry"]
    tags = board.Tags()["scalars"]
    matched = [t for c in category.chart for p in c.multiline.tag for t in tags if re.search(p, t)]
    assert {"eqtoolbox/training/loss", "eqtoolbox/worst/drift"} <= set(matched)
    assert len(matched) == len(set(matched))


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb
    from wandb.proto import wandb_internal_pb2

    run = wandb.init(project="test", dir=tmp_path, mode="offline")
    folder = Path(run.dir).parent
    diverge(run, tmp_path / "run", histograms=True)
    run.finish()
    wandb.teardown()
    alerts, history, summary = [], {}, {}
    for data in records_of(next(folder.glob("*.wandb"))):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("alert"):
            alerts.append(record.alert)
        for item in record.history.item:
            history[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    (alert,) = [a for a in alerts if DISEASE in a.title]
    assert alert.level == "ERROR" and "Try: " in alert.text
    assert summary["eqtoolbox/verdict"] == "alarm"
    assert "Verdict" in summary["eqtoolbox/findings"]
    assert history[f"{WEIGHT}/_type"] == "histogram"
    assert sum(history[f"{WEIGHT}/values"]) == 48
    html = folder / "files" / history["eqtoolbox/report/path"]
    assert html.read_text() == (tmp_path / "run" / "report.html").read_text()


@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    mlflow.set_tracking_uri(tmp_path.as_uri())
    mlflow.set_experiment("test")
    with mlflow.start_run() as run:
        diverge(mlflow, tmp_path / "run", histograms=True)
    kept = mlflow.MlflowClient().get_run(run.info.run_id)
    assert kept.data.tags["eqtoolbox.verdict"] == "alarm"
    assert "Try: " in kept.data.tags[f"eqtoolbox.alarm.{DISEASE}"]
    folder = Path(kept.info.artifact_uri.removeprefix("file://")) / "eqtoolbox"
    assert {path.name for path in folder.iterdir()} == {"findings.md", "report.html"}
    assert "Verdict" in (folder / "findings.md").read_text()


@pytest.mark.filterwarnings("ignore")
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("TRACKIO_TELEMETRY", "0")
    import trackio

    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path, raising=False)
    run = trackio.init(project="findings", embed=False)
    diverge(trackio, tmp_path / "run", histograms=True)
    trackio.finish()
    rows = trackio.SQLiteStorage.get_logs("findings", run.name)
    assert any(WEIGHT in row for row in rows)
    (text,) = [row["eqtoolbox/findings"] for row in rows if "eqtoolbox/findings" in row]
    assert "Verdict" in str(text)
    assert any("eqtoolbox/report" in row for row in rows)
    alerts = trackio.SQLiteStorage.get_alerts("findings", run.name)
    assert len([a for a in alerts if DISEASE in a["title"]]) == 1


def test_aim(tmp_path: Path) -> None:
    aim = pytest.importorskip("aim", exc_type=ImportError)
    run = aim.Run(repo=str(tmp_path), system_tracking_interval=None, capture_terminal_logs=False,
                  log_system_params=False)  # fmt: skip
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    run.set_artifacts_uri(artifacts.as_uri())
    diverge(run, tmp_path / "run", histograms=True)
    from aim.storage.context import Context

    at = Context({})
    drawn = run.get_distribution_sequence(WEIGHT, at).data.items_list()[1][0][0]
    assert np.sum(drawn.weights) == 48 and drawn.range[0] == -drawn.range[1]
    losses = run.get_metric("eqtoolbox/training/loss", at).data.items_list()[1][0]
    assert losses[0] == pytest.approx(eq.Run(tmp_path / "run").series("training/loss")[1][0])
    text = run.get_text_sequence("eqtoolbox/findings", at).data.items_list()[1][0][0]
    assert "Verdict" in text.data and run["eqtoolbox"] == {"verdict": "alarm"}
    told = [r.message for r in run.get_log_records().data.items_list()[1][0]]
    assert len([t for t in told if DISEASE in t]) == 1
    assert list(artifacts.rglob("eqtoolbox-report.html"))
    run.close()
