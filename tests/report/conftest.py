"""Run directories for the tests of the report."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from eqtoolbox.record.record import Record
from eqtoolbox.report import Run
from tests.report.runs import EVENTS, SYMMETRIES, TAIL, rich_records, write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Write records into a fresh run directory and read it back."""
    count = iter(range(100))

    def make(*records: Iterable[Record], **options: Any) -> Run:
        home = tmp_path / f"run{next(count)}"
        return Run(write_run(home, [r for group in records for r in group], **options))

    return make


@pytest.fixture(scope="session")
def rich_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000 steps of SGD reaching the edge of stability, resumed at 600, killed in a line."""
    home = tmp_path_factory.mktemp("rich") / "run"
    return write_run(
        home, rich_records(), events=EVENTS, tail=TAIL, segments=2, symmetries=SYMMETRIES
    )
