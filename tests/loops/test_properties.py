"""Laws over random configurations, schedules and record streams, and fuzz of what is read back."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eqtoolbox.attach.config import from_tables, load
from eqtoolbox.attach.entry import PROBES, schedule_from
from eqtoolbox.attach.toml import ConfigError
from eqtoolbox.record.record import Record
from eqtoolbox.record.schedule import as_schedule, at, every, log_spaced
from eqtoolbox.report.run import Run
from eqtoolbox.sinks.jsonl import RunDirectory

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# -- schedules -------------------------------------------------------------------------------------


@quick
@given(n=st.integers(1, 50), offset=st.integers(0, 50), step=st.integers(0, 500))
def test_every_is_due_n_steps_later_too_and_never_in_between(
    n: int, offset: int, step: int
) -> None:
    due = every(n, offset)
    window = [due(s) for s in range(step + offset, step + offset + n)]
    assert sum(window) == 1
    assert due(step + offset) == due(step + offset + n)
    assert not any(due(s) for s in range(offset))


@quick
@given(n=st.integers(2, 200), until=st.integers(1, 10_000))
def test_log_spaced_begins_at_zero_ends_at_its_end_and_has_no_more_than_n(
    n: int, until: int
) -> None:
    due = log_spaced(n, until)
    steps = sorted(due.steps)
    assert steps[0] == 0
    assert steps[-1] == until
    assert len(steps) <= n
    assert all(due(s) for s in steps)


@quick
@given(steps=st.lists(st.integers(0, 1000), max_size=20), step=st.integers(0, 1000))
def test_at_is_due_where_it_says(steps: list[int], step: int) -> None:
    assert at(steps)(step) == (step in steps)


@quick
@given(value=st.none() | st.text(max_size=5) | st.booleans() | st.floats() | st.integers(-9, -1))
def test_what_is_no_schedule_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"schedule|every"):
        as_schedule(value)


# -- configurations --------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers(-5, 200) | st.floats() | st.text(max_size=6)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
keys = st.sampled_from(["schedule", "k", "tol", "samples", "symmetries", "rtol", "smallest", "x"])


@quick
@given(
    tables=st.dictionaries(st.sampled_from([*PROBES, "curvatur"]), st.dictionaries(keys, values))
)
def test_a_configuration_is_read_or_refused_by_name(tables: dict[str, Any]) -> None:
    try:
        scheduled = from_tables(tables, "file.toml")
    except ConfigError as error:
        assert "file.toml" in str(error)
    else:
        assert [s.probe.name for s in scheduled] == list(tables)
        assert all(isinstance(s.schedule(3), bool) for s in scheduled)


@quick
@given(
    value=st.dictionaries(st.sampled_from(["every", "offset", "at", "log_spaced", "until"]), values)
)
def test_a_schedule_table_is_read_or_refused(value: dict[str, Any]) -> None:
    try:
        due = schedule_from(value)
    except (TypeError, ValueError, OverflowError):
        return
    assert isinstance(due(0), bool)


@quick
@given(data=st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_any_file_is_a_configuration_or_an_error_that_names_it(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "fuzz.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"fuzz\.toml"):
        load(path)


WORDS = (
    "[probes.curvature]",
    "schedule = 5",
    "k = 3",
    "k = ",
    "[engine]",
    'memory = "low"',
    "=",
    "#",
)


@quick
@given(lines=st.lists(st.sampled_from(WORDS), max_size=6))
def test_lines_of_a_configuration_in_any_order_are_read_or_refused(
    tmp_path: Path, lines: list[str]
) -> None:
    path = tmp_path / "fuzz.toml"
    path.write_text("\n".join(lines))
    try:
        assert load(path)
    except ConfigError as error:
        assert "fuzz.toml" in str(error)


# -- streams of records -----------------------------------------------------------------------

names = st.sampled_from(["training/loss", "curvature/sharpness", "conservation/drift/rescale"])
numbers = st.floats(allow_nan=True, allow_infinity=True)
records = st.builds(
    Record, step=st.integers(0, 20), name=names, value=numbers, stderr=st.none() | numbers,
    note=st.text(max_size=8),
)  # fmt: skip
garbage = st.sampled_from(
    [b'{"step": 3, "na', b"", b"\x00\xff", b"[]", b"null", b"3", b'{"step": "x", "name": 1}',
     b'{"name": "a/b", "value": 1}', b'{"step": 1, "name": "a/b", "value": 1, "status": "odd"}']
)  # fmt: skip


def same(a: Record, b: Record) -> bool:
    equal = a.value == b.value or (math.isnan(a.value) and math.isnan(b.value))
    return equal and (a.step, a.name, a.note, a.segment) == (b.step, b.name, b.note, b.segment)


@quick
@given(stream=st.lists(records, max_size=15), cuts=st.sets(st.integers(0, 15), max_size=3))
def test_what_is_read_back_is_the_last_of_each_step_and_name(
    stream: list[Record], cuts: set[int]
) -> None:
    """However often the run is stopped and resumed in between."""
    with tempfile.TemporaryDirectory() as folder:
        store = RunDirectory(folder + "/run")
        for i, record in enumerate(stream):
            if i in cuts:
                store.close()
                store = RunDirectory(folder + "/run", resume=True)
            store.write(record)
        store.close()
        run = Run(folder + "/run")
    expected = {(r.step, r.name): r for r in stream}
    found = {(r.step, r.name): r for r in run.records()}
    assert found.keys() == expected.keys()
    assert all(same(found[key], expected[key]) for key in expected)
    assert run.torn == 0


@quick
@given(stream=st.lists(records | garbage, max_size=12), tail=st.integers(0, 60))
def test_torn_and_foreign_lines_cost_themselves_only(stream: list[Any], tail: int) -> None:
    rows = [
        json.dumps(r.to_json(), allow_nan=False).encode() if isinstance(r, Record) else r
        for r in stream
    ]
    whole = b"\n".join(rows)
    data = whole[: len(whole) - tail] if tail < len(whole) else whole
    with tempfile.TemporaryDirectory() as folder:
        RunDirectory(folder + "/run").close()
        (Path(folder) / "run" / "records.jsonl").write_bytes(data)
        run = Run(folder + "/run")
        again = RunDirectory(folder + "/run", resume=True)
        again.write(Record(step=99, name="training/loss", value=1.0, segment=again.segment))
        again.close()
        later = Run(folder + "/run")
        run.findings(), later.findings()
    kept = data.split(b"\n")
    expected = {
        (r.step, r.name) for r, row in zip(stream, rows, strict=True)
        if isinstance(r, Record) and row in kept
    }  # fmt: skip
    assert expected <= {(r.step, r.name) for r in run.records()}
    assert (
        len(later.records("training/loss"))
        == len({k for k in expected if k[1] == "training/loss"}) + 1
    )
