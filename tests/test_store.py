"""The run directory keeps every row it was given, whatever happens next."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqtoolbox.record.record import Record
from eqtoolbox.report.run import Run
from eqtoolbox.sinks.jsonl import RunDirectory

numbers = st.floats(allow_nan=True, allow_infinity=True)


def same(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


@given(
    value=numbers,
    stderr=st.none() | numbers,
    floor=st.none() | numbers,
    step=st.integers(0, 10**9),
    note=st.text(max_size=20),
)
def test_a_record_survives_strict_json(
    value: float, stderr: float | None, floor: float | None, step: int, note: str
) -> None:
    record = Record(step=step, name="a/b", value=value, stderr=stderr, floor=floor, note=note)
    again = Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))
    assert same(again.value, value)
    assert same(again.stderr, stderr)
    assert same(again.floor, floor)
    assert (again.step, again.name, again.note) == (step, "a/b", note)


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="status must be one of"):
        Record(step=0, name="a/b", value=1.0, status="fine")  # type: ignore[arg-type]


def test_fields_of_later_versions_are_ignored() -> None:
    assert Record.from_json({"step": 1, "name": "a/b", "value": 2.0, "colour": "red"}).value == 2.0


CHILD = """
import sys, time
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.jsonl import RunDirectory
store = RunDirectory(sys.argv[1])
for i in range(200):
    store.write(Record(step=i, name="a/b", value=float(i)))
print("written", flush=True)
time.sleep(60)
"""


def test_a_killed_process_keeps_every_row_it_wrote(tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "written\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    steps, values = Run(run).series("a/b")
    assert list(steps) == list(range(200))
    assert list(values) == list(range(200))
    assert Run(run).info["finished"] is None


def test_a_torn_last_line_costs_that_line_only_and_resuming_goes_on(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path / "run")
    for i in range(3):
        store.write(Record(step=i, name="a/b", value=1.0))
    store.close()
    with (tmp_path / "run" / "records.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "na')
    assert list(Run(tmp_path / "run").series("a/b")[0]) == [0, 1, 2]
    again = RunDirectory(tmp_path / "run", resume=True)
    again.write(Record(step=3, name="a/b", value=2.0, segment=again.segment))
    again.close()
    assert list(Run(tmp_path / "run").series("a/b")[0]) == [0, 1, 2, 3]
    assert again.segment == 1


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path / "run")
    with pytest.raises(FileExistsError, match="holds an unfinished run"):
        RunDirectory(tmp_path / "run")
    store.close()
    store.close()
    with pytest.raises(FileExistsError, match=r"holds a finished run.*resume=True"):
        RunDirectory(tmp_path / "run")
