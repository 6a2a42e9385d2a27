"""What second derivatives were made of is data of a record, and said in findings and panels."""

from collections.abc import Callable

import pytest

from eqtoolbox.record.record import Record
from eqtoolbox.report import Run
from eqtoolbox.report.topics import curvature
from tests.report.runs import series, shown

MakeRun = Callable[..., Run]
NOTE = "products are of the loss with a part held: detach cut it off"


def made(make_run: MakeRun, kind: str | None) -> Run:
    mode = kind or "exact"
    return make_run(
        series("curvature/self_test/asymmetry", [1e-7], note=f"{mode}: {NOTE}", hessian=kind),
        series("curvature/sharpness", [2.0, 3.0], hessian=kind),
        series("curvature/eigenvalue/1", [2.0, 3.0], hessian=kind),
    )


def reading(run: Run) -> str:
    (panel,) = [p for p in shown(curvature.TOPIC, run) if p.slug == "eigenvalues"]
    return panel.reading


@pytest.mark.parametrize(
    ("kind", "said", "read"),
    [
        ("held", "Curvature is not that of the gradient that trains: products", "is held"),
        ("differenced", "Hessian products are differenced", "are differences of gradients"),
    ],
)
def test_what_stands_in_for_the_hessian_is_said(
    make_run: MakeRun, kind: str, said: str, read: str
) -> None:
    run = made(make_run, kind)
    assert [r.hessian for r in run.records("curvature/sharpness")] == [kind, kind]
    assert any(f.text.startswith(said) and NOTE in f.text for f in run.findings())
    assert read in reading(run)


def test_exact_products_need_no_word(make_run: MakeRun) -> None:
    """Must fail."""
    run = made(make_run, None)
    assert not any(NOTE in f.text for f in run.findings())
    assert "held" not in reading(run) and "differences" not in reading(run)


def test_a_row_of_an_older_run_has_no_such_word() -> None:
    row = Record(step=0, name="curvature/sharpness", value=1.0, hessian="held").to_json()
    assert row.pop("hessian") == "held"
    assert Record.from_json(row).hessian is None
    with pytest.raises(ValueError, match=r"hessian must be one of \('held', 'differenced'\)"):
        Record.from_json(row | {"hessian": "guessed"})
