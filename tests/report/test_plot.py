"""A figure of a record is drawn as the page draws it."""

import sys
from pathlib import Path

import pytest

from eqtoolbox.report import Run
from eqtoolbox.report.sections import sections
from tests.report.runs import missing, series, write_run

pytest.importorskip("plotly")


def test_a_figure_has_the_traces_of_the_page(rich_run: Path) -> None:
    run = Run(rich_run)
    figure = run.plot("curvature/sharpness")
    line = next(t for t in figure.data if t.name)
    drawn = [t for s in sections(run) for p in s.panels for t in p.figure["data"]]
    assert any(list(line.y) == t["y"] and list(line.x) == t["x"] for t in drawn)
    assert figure.layout.title.text == "curvature/sharpness"
    assert "largest curvature" in figure.layout.title.subtitle.text


def test_a_quantity_is_drawn_for_all_its_targets(tmp_path: Path) -> None:
    rows = series("conservation/drift/rescale", [1e-6, 1e-2], floor=1e-7)
    rows += series("conservation/drift/scale", [1e-5, 1e-3], floor=1e-7)
    run = Run(write_run(tmp_path, rows))
    for name in ("conservation/drift", "conservation/drift/"):
        figure = run.plot(name)
        assert [t.name for t in figure.data if t.name] == ["rescale", "scale"]
        assert figure.layout.yaxis.type == "log"
        assert any(t.line.dash == "dot" for t in figure.data)


def test_a_record_without_numbers_and_one_of_a_single_step(tmp_path: Path) -> None:
    rows = missing("curvature/sharpness", [0, 10], "failed") + series("training/loss", [2.0])
    run = Run(write_run(tmp_path, rows))
    assert list(run.plot("curvature/sharpness").data[0].x) == [0, 10]
    assert list(run.plot("training/loss").data[0].y) == [2.0]


def test_an_unknown_name_and_a_missing_plotly_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(write_run(tmp_path, series("curvature/sharpness", [2.0])))
    with pytest.raises(KeyError, match="did you mean 'curvature/sharpness'"):
        run.plot("curvature/sharpnes")
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r'pip install "eqtoolbox\[report\]"'):
        run.plot("curvature/sharpness")
