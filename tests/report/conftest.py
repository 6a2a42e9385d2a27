"""Run directories for the tests of the report."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from eqtoolbox.record.record import Record
from eqtoolbox.report import Run, write_page
from tests.report.runs import EVENTS, SYMMETRIES, TAIL, rich_records, with_facts, write_run


@pytest.fixture(params=["notes of format 1", "facts"])
def make_run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Run]:
    """Write records into a fresh run directory and read it back.

    Once as runs of format 1 are, whose notes tell the facts, and once with facts and other notes.
    """
    count = iter(range(100))

    def make(*records: Iterable[Record], **options: Any) -> Run:
        rows = [r for group in records for r in group]
        if request.param == "facts":
            rows, options = [with_facts(r) for r in rows], {"format": 2} | options
        return Run(write_run(tmp_path / f"run{next(count)}", rows, **options))

    return make


@pytest.fixture(scope="session")
def rich_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000 steps of SGD reaching the edge of stability, resumed at 600, killed in a line."""
    home = tmp_path_factory.mktemp("rich") / "run"
    return write_run(
        home, rich_records(), events=EVENTS, tail=TAIL, segments=2, symmetries=SYMMETRIES
    )


@pytest.fixture(scope="session")
def rich_page(rich_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the rich run, alone in its folder."""
    pytest.importorskip("jinja2")
    return write_page(Run(rich_run), tmp_path_factory.mktemp("page") / "deep" / "report.html")
