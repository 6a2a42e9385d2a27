"""One table tells what records mean: complete, without drift between terminal, page and docs."""

import ast
import re
from pathlib import Path

import pytest
import torch

from eqtoolbox.replay.gradient import compare
from eqtoolbox.report import Run, write_page
from eqtoolbox.report.explained import explained, markdown, meanings, near
from tests.report.runs import series, write_run

ROOT = Path(__file__).parents[2]


def quantities() -> list[str]:
    """Names that the sources write literally: (probe, quantity) of every call that makes a row."""
    found = []
    for path in sorted((ROOT / "eqtoolbox").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            made = ast.unparse(node.func)
            first = node.args[0]
            words = [first] if isinstance(first, ast.Constant) else getattr(first, "values", [])
            text = "".join(str(w.value) if isinstance(w, ast.Constant) else "x" for w in words)
            row = made.startswith("Measurement") and path.parent.name == "probes"
            if row or made.endswith(".emit"):
                found.append(text)
            elif made.endswith("._emit"):
                found.append(f"vital/{text}")
    lost = ("x_", "x/x")  # x: what is not literal
    return sorted({f for f in found if f and not f.startswith(lost) and f[-1] != "/"})


def test_every_record_that_the_sources_name_is_explained() -> None:
    names = quantities()
    known = {"relative_error", "duplicates", "cost/seconds/x", "share_x", "vital/silent"}
    assert known <= set(names)
    ends = [m.pattern.split("/", 1) for m in meanings() if "/" in m.pattern]
    probes = {probe for probe, _ in ends}
    lost = [
        name
        for name in names
        if not explained(name) and not any(explained(f"{probe}/{name}") for probe in probes)
    ]
    assert not lost


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("conservation/drift/rescale", "conservation/drift/<family>"),
        ("noether/second_order", "noether/second_order/<family>"),  # of all families: skipped
        ("equivariance/layer_error/flip/00.conv1", "equivariance/layer_error/<symmetry>/<layer>"),
        ("equivariance/lie_derivative/so3.2", "equivariance/lie_derivative/<symmetry>.<generator>"),
        ("conservation/share_decay/scale", "conservation/share_<cause>/<family>"),
        ("tracking/self_test/repeat", "<probe>/self_test/<check>"),
    ],
)
def test_names_are_told_by_their_pattern(name: str, pattern: str) -> None:
    found = explained(name)
    assert found is not None and found.pattern == pattern


def test_each_pattern_is_its_own_first_match() -> None:
    for m in meanings():
        name = re.sub(r"<\w+>", "x", m.pattern)
        assert explained(name) is m, m.pattern


def test_what_is_not_known_is_not_explained() -> None:
    for name in ("mine/norm", "curvature/sharpness/1", "drift", "", "conservation/share_/x"):
        assert explained(name) is None
    assert near("qqqq") == []


def test_every_entry_says_all_and_explains_its_places() -> None:
    for m in meanings():
        assert m.meaning.endswith((".", "?", ":")) or "." in m.meaning, m.pattern
        assert m.formula and m.reading, m.pattern
        assert set(re.findall(r"<\w+>", m.pattern)) <= m.letters.keys()
        assert "http" not in str(m)


def test_the_ratio_of_gradients_is_explained_as_it_is_recorded() -> None:
    ratio = explained("monitor/closure_grad_ratio")
    replayed, trained = {"w": torch.full((4,), 3.0)}, {"w": torch.ones(4)}
    assert compare(replayed, trained, replayed).ratio == pytest.approx(1 / 3)
    assert ratio is not None and ratio.formula.startswith("‖g‖ / ‖g'‖, g' the gradient of the loss")


def test_letters_are_those_of_the_formula() -> None:
    sharpness, turn = explained("curvature/sharpness"), explained("curvature/turn")
    assert sharpness is not None and {"λ", "H"} == sharpness.letters.keys()
    assert turn is not None and not turn.letters


def test_the_page_of_the_docs_is_the_table() -> None:
    assert (ROOT / "docs" / "records.md").read_text() == markdown(), (
        "write it anew: python -c 'from eqtoolbox.report.explained import markdown; "
        'print(markdown(), end="")\' > docs/records.md'
    )


def test_the_page_of_a_run_has_it_as_tooltips(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    rows = series("curvature/sharpness", [2.0, 3.0]) + series("mine/norm", [1.0])
    page = write_page(Run(write_run(tmp_path, rows)), tmp_path / "p.html").read_text()
    meant = explained("curvature/sharpness")
    assert meant is not None
    assert f'title="{meant.meaning}' in page and meant.reading in page
    assert page.count('class="name" title=') == 1  # none for mine/norm
