"""Notebooks show runs, findings and results, and run nothing that stands in them."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.expect import notebook
from eqtoolbox.linalg import MatrixOperator, spectral_moments, top_eigenpairs
from eqtoolbox.report.finding import Evidence, Finding, Findings
from eqtoolbox.symmetry import Cyclic, Equivariance, actions, equivariance_error
from eqtoolbox.symmetry.audit import audit
from eqtoolbox.weights import discover
from tests.report.runs import series, write_run

TAGS = {"p", "code", "pre", "ul", "li", "b", "small", "table", "tr", "td", "th"}
HOSTILE = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        assert not attrs
        self.tags.add(tag)


def shown(thing: object) -> str:
    """What a notebook shows, checked for tags that are not ours."""
    text: str = thing._repr_html_()  # type: ignore[attr-defined]
    assert Tags(text).tags <= TAGS, text
    return text


def test_a_foreign_tag_would_be_seen() -> None:
    assert "script" in Tags(f"<p>{HOSTILE}</p>").tags
    assert Tags(notebook.text(HOSTILE)).tags == {"pre"}
    assert Tags(notebook.table([(HOSTILE,)], (HOSTILE,))).tags == {"table", "tr", "td", "th"}


def test_findings_and_runs(tmp_path: Path) -> None:
    seen = Evidence(name="a/b", step=3, value=1.5)
    finding = Finding(level="warning", text=f"x {HOSTILE}", evidence=(seen,))
    assert "<b>warning</b>: x &lt;script" in shown(finding) and "a/b 1.5" in shown(finding)
    assert shown(Findings([finding, finding])).count("<li>") == 2
    rows = series("training/loss", [3.0 - 0.1 * i for i in range(20)])
    run = eq.Run(write_run(tmp_path / "a&b", rows, model={"class": HOSTILE}))
    assert "a&amp;b" in shown(run) and "fell" in shown(run)
    assert shown(run.findings()) in shown(run)


def test_results_of_measurements() -> None:
    torch.manual_seed(0)
    operator = MatrixOperator(torch.diag(torch.tensor([5.0, 2.0, 1.0])))
    found = top_eigenpairs(operator, 1, generator=torch.Generator().manual_seed(0))
    assert "<td>values</td><td>5</td>" in shown(found)
    moments = spectral_moments(operator, generator=torch.Generator().manual_seed(0))
    assert "8 ± 0" in shown(moments)
    turns = Equivariance(Cyclic(4), actions.quarter_turn, actions.trivial, name="turns")
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.randn(9, 1, 8, 8)
    assert "violated" in shown(equivariance_error(model, images, turns))
    assert "<th>verdict</th>" in shown(audit(model, images))


def test_symmetries_and_monitor() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert "rescale" in shown(discover(model, torch.randn(8, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(model, optimizer, loss_fn=lambda m, x: m(x).square().mean()) as monitor:
        assert "Monitor(Sequential" in shown(monitor)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(3), "1, 1, 1"),
        (torch.ones(30), "shape (30,)"),
        (torch.ones(2, 2), "shape (2, 2)"),
        (torch.tensor(2.5), "2.5"),
        ([{"a": torch.ones(1)}], "1"),
        (1.23456789, "1.235"),
        (None, "None"),
    ],
)
def test_values_are_short(value: object, said: str) -> None:
    assert f"<td>{said}</td>" in notebook.table([(value,)])
