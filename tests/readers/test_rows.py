"""Rows of a run are checked where they are read: odd ones are told, counted and left out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from eqtoolbox.record.record import LONGEST, Record, checked, is_name, spelled
from eqtoolbox.report import Run, summary_text
from eqtoolbox.report.described import sound
from eqtoolbox.report.page import content
from eqtoolbox.report.words import printable
from eqtoolbox.sinks.jsonl import RunDirectory
from eqtoolbox.watch.journal import Journal
from tests.report.runs import series, write_run

GOOD = {"step": 3, "name": "training/loss", "value": 0.5}
ODD = [
    ({"step": "x"}, "step must be an int >= 0, got 'x'"),
    ({"step": -5}, "step must be an int >= 0, got -5"),
    ({"step": True}, "step must be an int >= 0, got True"),
    ({"step": 2**63}, "step must be an int >= 0"),
    ({"step": 10**400}, "step must be an int >= 0"),
    ({"value": None}, "value must be a number, got None"),
    ({"value": True}, "value must be a number, got True"),
    ({"value": 10**400}, "value must be a number"),
    ({"value": []}, r"value must be a number, got \[\]"),
    ({"stderr": "x"}, "stderr must be a number, got 'x'"),
    ({"floor": [1]}, r"floor must be a number, got \[1\]"),
    ({"seconds": {}}, r"seconds must be a number, got \{\}"),
    ({"matvecs": 1.5}, "matvecs must be an int >= 0, got 1.5"),
    ({"note": {"a": 1}}, "note must be a text, got"),
    ({"facts": "x"}, "facts must be an object of at most 32 facts, got 'x'"),
    ({"facts": [1]}, "facts must be an object"),
    ({"facts": {f"f{i}": 1 for i in range(33)}}, "facts must be an object of at most 32"),
    ({"facts": {"Layer 1": 1}}, "names of facts must be 1 to 40 letters .*got 'Layer 1'"),
    ({"facts": {"pair": None}}, "the fact 'pair' must be a text, .*got None; leave out"),
    ({"facts": {"pair": {"a": 1}}}, "the fact 'pair' must be a text"),
    ({"facts": {"units": [[1]]}}, r"the fact 'units' must be .*got \[1\]"),
    ({"facts": {"count": 10**400}}, "the fact 'count' must be .* an integer below"),
    ({"facts": {"factor": math.inf}}, "the fact 'factor' must be .* a finite number"),
    ({"unit": 5}, "unit must be a text, got 5"),
    ({"status": "odd"}, "status must be one of .*got 'odd'"),
    ({"status": []}, "status must be one of"),
    ({"verdict": "odd"}, "verdict must be one of .*got 'odd'"),
    ({"mode": {}}, "mode must be one of"),
    ({"segment": "x"}, "segment must be an int >= 0, got 'x'"),
    ({"name": 5}, r"name must be 1 to 200 letters of \[A-Za-z0-9_./-\], got 5"),
    ({"name": "curvature/eigenvalue/²"}, "name must be 1 to 200 letters"),
    ({"name": "a" * 201}, "name must be 1 to 200 letters"),
    ({"name": ""}, "name must be 1 to 200 letters"),
    ({"name": "a/b\n"}, "name must be 1 to 200 letters"),
]


@pytest.mark.parametrize(("change", "message"), ODD)
def test_an_odd_field_is_refused_by_its_name(change: dict[str, Any], message: str) -> None:
    assert Record.from_json(GOOD) == Record(step=3, name="training/loss", value=0.5)
    with pytest.raises(ValueError, match=message):
        Record.from_json(GOOD | change)


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        checked({k: v for k, v in GOOD.items() if k != field})


def written(home: Path, *rows: Any) -> Run:
    write_run(home, [])
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (home / "records.jsonl").write_text("\n".join(lines) + "\n")
    return Run(home)


def test_an_odd_row_is_told_by_file_and_line_and_costs_only_itself(tmp_path: Path) -> None:
    run = written(tmp_path, GOOD, GOOD | {"step": "x"}, "", "[" * 10_000, GOOD | {"step": 4})
    assert [r.step for r in run.records()] == [3, 4]
    assert run.torn == 2
    assert [(e["kind"], e["message"]) for e in run.events] == [
        ("warning", "records.jsonl line 2: step must be an int >= 0, got 'x'"),
        ("warning", "records.jsonl line 4: no whole JSON object"),
    ]


def test_of_many_odd_rows_the_first_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    run = written(tmp_path, *[{"step": "x"}] * 5000)
    assert run.torn == 5000
    assert len(run.events) == 21
    assert run.events[-1]["message"] == "4980 more things could not be read"


def test_a_line_longer_than_any_row_is_one_odd_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eqtoolbox.record.files.LIMIT", 1000)
    run = written(tmp_path, "x" * 5000, GOOD)
    assert [r.step for r in run.records()] == [3]
    assert [e["message"] for e in run.events] == ["records.jsonl line 1: no whole JSON object"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"step": {}}, "step must be an int"),
        ({"kind": ["error"]}, "kind must be one of"),
        ({"probe": None}, "probe and message must be texts"),
        ({"message": [1]}, "probe and message must be texts"),
        ({"time": "x"}, "time must be a number"),
    ],
)
def test_an_odd_event_is_told_and_left_out(
    tmp_path: Path, event: dict[str, Any], message: str
) -> None:
    good = {"time": 0.0, "step": 1, "kind": "info", "probe": "x", "message": "m"}
    run = Run(write_run(tmp_path, [], events=[good, good | event]))
    assert run.events[0] == good
    assert run.events[1]["message"].startswith(f"events.jsonl line 2: {message}")
    assert run.torn == 1


def test_an_odd_fact_is_told_and_its_neighbours_are_kept(tmp_path: Path) -> None:
    groups = [{"lr": "x", "momentum": 0.9}, 5]
    optimizer = {"class": "SGD", "groups": groups}
    run = Run(write_run(tmp_path, [], started="x", optimizer=optimizer, budget=-1, later=[1]))
    assert run.info["optimizer"] == {"class": "SGD", "groups": [{"momentum": 0.9}]}
    assert run.info["later"] == [1]
    assert not {"started", "budget"} & run.info.keys()
    assert [e["message"] for e in run.events] == [
        "run.json: started must be seconds since 1970, got 'x'",
        "run.json: optimizer.groups must be a list of objects",
        "run.json: optimizer.groups.lr must be a number, got 'x'",
        "run.json: budget must be a number >= 0, got -1",
    ]
    assert sound({"model": {"class": "Net", "parameters": 3}})[1] == []


@pytest.mark.parametrize("field", ["stderr", "floor"])
@pytest.mark.parametrize("odd", [math.inf, -1.0, math.nan, 1e308])
def test_what_is_no_error_and_no_floor_decides_nothing(
    tmp_path: Path, field: str, odd: float
) -> None:
    """An infinite floor would let every law hold."""
    rows = series("equivariance/relative_error/flip", [0.5] * 6, **{field: odd})
    run = Run(write_run(tmp_path, rows))
    assert not [f for f in run.findings() if "holds" in f.text]
    content(run)
    shown = run.column("equivariance/relative_error/flip", field)[0]
    assert shown == odd or (math.isnan(shown) and math.isnan(odd))  # the run itself says what is


@pytest.mark.parametrize("value", [1e308, -1e308, math.inf])
def test_a_number_beyond_all_sums_counts_as_infinite(tmp_path: Path, value: float) -> None:
    run = Run(write_run(tmp_path, series("training/loss", [1.0, value, value])))
    assert "The training loss is infinite since step 10" in summary_text(run)


ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066\r\b"


def test_no_escape_reaches_a_terminal_or_a_page(tmp_path: Path) -> None:
    rows = [Record(step=0, name="a/b", value=math.nan, status="failed", note=ESCAPES)]
    events = [{"step": 1, "kind": "error", "probe": ESCAPES, "message": ESCAPES}]
    run = Run(write_run(tmp_path, rows, events=events, model={"class": ESCAPES}))
    texts = [summary_text(run), run._repr_html_(), *(f.text for f in run.findings())]
    assert run.records()[0].note == ESCAPES
    assert not set("".join(texts)) & set("\x1b\x07\x9b\u202e\u2066\r\b")
    assert r"\x1b[2J" in texts[0]
    assert printable("tabs\tand\nlines stay, 3\u202f% too") == "tabs\tand\nlines stay, 3\u202f% too"


def test_half_of_a_surrogate_pair_is_read_as_a_question_mark(tmp_path: Path) -> None:
    run = written(tmp_path, GOOD | {"note": "a\ud800b"})
    assert run.records()[0].note == "a?b"


@pytest.mark.parametrize(
    "name", ["probe/a b", "probe/turn by 90°", "probe/" + "x" * 400, "probe/\ud800", "a\n"]
)
def test_a_name_is_spelled_in_the_letters_that_names_have(name: str) -> None:
    assert is_name(spelled(name))
    assert len(spelled(name)) <= LONGEST
    assert not is_name(name)


def test_names_that_differ_at_their_end_are_not_cut_to_the_same() -> None:
    assert spelled("x" * 400 + "a") != spelled("x" * 400 + "b")
    assert spelled("curvature/eigenvalue/1") == "curvature/eigenvalue/1"


def test_rows_come_by_step_and_the_last_of_each_counts(tmp_path: Path) -> None:
    given = [(2, "b", 1.0), (0, "b", 2.0), (2, "a", 3.0), (2, "b", 4.0), (0, "a", 5.0)]
    rows = [Record(step=s, name=n, value=v) for s, n, v in given]
    run = Run(write_run(tmp_path, rows))
    assert [(r.step, r.name, r.value) for r in run.records()] == [
        (0, "b", 2.0), (0, "a", 5.0), (2, "b", 4.0), (2, "a", 3.0)
    ]  # fmt: skip
    assert [r.value for r in run.rows("b")[::-1]] == [4.0, 2.0]
    assert run.rows("b")[-1] == rows[3]
    assert run.attempts() == {("b", "ok"): 2, ("a", "ok"): 2}
    assert run.tried() == {"b": 2, "a": 2}


def test_a_probe_that_names_its_target_freely_is_read_back(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path / "run")
    journal = Journal([store], "raise", 0)
    journal.write(Record(step=0, name="mine/error/turn by 90°", value=1.0))
    with pytest.raises(ValueError, match="name must be 1 to 200 letters"):
        store.write(Record(step=0, name="mine/error/turn by 90°", value=1.0))
    journal.close()
    run = Run(tmp_path / "run")
    assert run.names() == ["mine/error/turn_by_90_"]
    assert run.torn == 0
