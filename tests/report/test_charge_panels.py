"""Heat maps of charges: every unit and step in its place, small whatever the run."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.report.page import content
from eqtoolbox.report.run import Run
from eqtoolbox.report.topics import conservation
from eqtoolbox.report.topics.charges import STEPS, UNITS, charge_panels, strongest
from eqtoolbox.sinks.jsonl import RunDirectory
from tests.conftest import blobs, mlp
from tests.report.runs import series, shown, write_run

NAME = "conservation/unit_drift/rescale"


def test_a_training_run_shows_its_units(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mlp(6, 5, 4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(
        model, optimizer, probes=[Conservation()], schedule=1, budget=None, run_dir=tmp_path / "a"
    ) as monitor:
        loss_fn = monitor.loss(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        for _ in range(6):
            optimizer.zero_grad()
            loss_fn(model, blobs()).backward()
            optimizer.step()
    run = Run(tmp_path / "a")
    panel = next(p for p in charge_panels(run) if p.slug == "units-rescale")
    (figure,) = panel.figure["data"]
    steps, values = run.array(NAME)
    assert figure["x"] == steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert figure["y"] == list(range(9))
    assert np.allclose(np.array(figure["z"], dtype=float), 100 * values.T, rtol=1e-5)
    assert panel.figure["layout"]["yaxis"]["ticktext"] == ["0-2", "2-4"]
    assert panel.figure["layout"]["yaxis"]["tickvals"] == [0, 5]
    slugs = [p.slug for s in content(run)["sections"] for p in s.panels]
    assert {"units-rescale", "units-translation", "conservation-first_order"} <= set(slugs)


def store(path: Path, vectors: dict[int, np.ndarray]) -> Run:
    run = RunDirectory(path / "run")
    for step, values in vectors.items():
        run.array(step, NAME, values)
    run.close()
    return Run(path / "run")


def test_a_large_run_stays_small_and_keeps_its_outlier(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = {i: 1e-3 * rng.normal(size=5000) for i in range(400)}
    for values in vectors.values():
        values[3210] = -0.7
    (panel,) = charge_panels(store(tmp_path, vectors))
    (figure,) = panel.figure["data"]
    cells = np.array(figure["z"])
    assert cells.shape == (UNITS, STEPS)
    row = int(np.searchsorted(figure["y"], 3210, side="right")) - 1
    assert np.allclose(cells[row], -70)
    assert figure["x"][-1] == 399
    assert "5000 units; each row is the strongest of 53" in panel.reading


def test_numbers_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    vectors = {i: np.array([0.1, np.nan, np.inf]) for i in range(3)}
    (panel,) = charge_panels(store(tmp_path, vectors))
    assert panel.figure["data"][0]["z"][1] == [None, None, None]
    assert panel.figure["data"][0]["z"][2] == [None, None, None]


def test_one_step_or_one_unit_is_no_heat_map(tmp_path: Path) -> None:
    assert list(charge_panels(store(tmp_path / "a", {0: np.ones(5)}))) == []
    assert list(charge_panels(store(tmp_path / "b", {0: np.ones(1), 1: np.ones(1)}))) == []


def test_the_strongest_of_neighbours_keeps_its_sign() -> None:
    cells, starts = strongest(np.array([[1.0, 0.0], [-3.0, 2.0], [0.5, 0.5]]), 2)
    assert cells.tolist() == [[-3.0, 2.0], [0.5, 0.5]]
    assert starts.tolist() == [0, 2]


def test_measured_and_predicted_drifts_lie_on_one_another(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mlp(6, 5, 4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    with eq.attach(
        model, optimizer, probes=[Conservation()], schedule=1, budget=None, run_dir=tmp_path / "a"
    ) as monitor:
        loss_fn = monitor.loss(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        for _ in range(8):
            optimizer.zero_grad()
            loss_fn(model, blobs()).backward()
            optimizer.step()
    panels = {p.slug: p for p in shown(conservation.TOPIC, Run(tmp_path / "a"))}
    lines = {t["name"]: t for t in panels["forecast"].figure["data"]}
    measured, predicted = (lines[f"rescale, {kind}"] for kind in ("measured", "predicted"))
    at = dict(zip(measured["x"], measured["y"], strict=True))
    assert len(predicted["x"]) >= 5
    for step, height in zip(predicted["x"], predicted["y"], strict=True):
        assert abs(height / at[step] - 1) < 1e-3


def test_legends_of_sums_since_the_start_are_those_of_the_finding(tmp_path: Path) -> None:
    rows = series("conservation/drift/scale", [0.01, 0.02, 0.03, 0.04, 0.09])
    rows += series("conservation/share_decay/scale", [0.1, 0.2, 0.2, 0.2, 0.7])
    rows += series("conservation/share_finite_step/scale", [0.9, 0.8, 0.8, 0.8, 0.3])
    run = Run(write_run(tmp_path, rows))
    (drift,), (causes,) = conservation.drift_panel(run), conservation.cause_panels(run)
    assert [key.value for key in (*drift.keys, *causes.keys)] == ["9 %", "70 %", "30 %"]
    (told,) = conservation.conservation(run)
    assert "drifted 9 % since the start: 70 % weight decay, 30 % finite step" in told.text
