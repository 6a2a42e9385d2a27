"""Facts of records: typed and frozen, the same after a run directory, and no trap where hostile."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eqtoolbox.record.facts import NO_FACTS, Facts
from eqtoolbox.record.record import FORMAT, Record
from eqtoolbox.report import Run
from eqtoolbox.report.old_notes import facts_in
from eqtoolbox.sinks.jsonl import RunDirectory
from eqtoolbox.watch.journal import Journal
from eqtoolbox.watch.probe import Measurement
from tests.report.runs import write_run

GIVEN = {"layer": "conv1", "count": 3, "factor": 0.5, "pair": True, "units": ["a", "b"]}
ROW = {"step": 3, "name": "curvature/stability", "value": 0.5}


def test_facts_are_the_same_after_a_run_directory(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    rows = [
        Record(step=i, name="a/b", value=1.0, facts=Facts(GIVEN | {"count": i})) for i in (0, 1)
    ]
    run.write_all([*rows, Record(step=2, name="a/b", value=1.0)])
    run.close()
    read = Run(tmp_path / "run")
    assert read.records("a/b") == [*rows, Record(step=2, name="a/b", value=1.0)]
    assert read.column("a/b", "facts").tolist() == [r.facts for r in rows] + [NO_FACTS]
    assert read.info["format"] == FORMAT == 2
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["facts"] == GIVEN | {"count": 0}
    assert "facts" not in lines[2], "a row without facts takes no room for them"


def test_facts_are_frozen_and_can_be_copied_and_compared() -> None:
    facts = Facts(GIVEN)
    with pytest.raises(TypeError, match="does not support item assignment"):
        facts["layer"] = "x"  # type: ignore[index]
    assert pickle.loads(pickle.dumps(facts)) == copy.deepcopy(facts) == facts
    assert len({facts, Facts(GIVEN), Facts({})}) == 2
    assert {Record(step=0, name="a", value=1.0, facts=facts)}
    given = {"units": [1, 2]}
    held = Facts(given)
    given["units"].append(3)
    assert held["units"] == (1, 2), "what is given may change; the facts do not"


def test_a_fact_of_another_kind_is_as_good_as_none() -> None:
    facts = Facts(GIVEN | {"sizes": [1, 2], "mixed": [1, "a"], "below": -1})
    assert (facts.text("layer"), facts.text("count"), facts.text("units")) == ("conv1", "", "")
    assert (facts.number("factor"), facts.number("pair"), facts.number("no")) == (0.5, None, None)
    assert (facts.count("count"), facts.count("factor"), facts.count("below")) == (3, None, None)
    assert (facts.flag("pair"), facts.flag("count"), facts.flag("no")) == (True, False, False)
    assert (facts.texts("units"), facts.texts("mixed"), facts.texts("layer")) == (
        ("a", "b"),
        (),
        (),
    )
    assert (facts.counts("sizes"), facts.counts("mixed"), facts.counts("count")) == ((1, 2), (), ())


def test_numbers_of_any_library_become_pythons_own() -> None:
    several = (np.float64(1.5), True)
    facts = Facts({"a": np.float32(0.5), "b": np.int64(3), "c": several, "d": np.True_})
    assert [type(v) for v in (facts["a"], facts["b"], facts["d"])] == [float, int, bool]
    assert facts["c"] == (1.5, True)


@pytest.mark.parametrize("value", [torch.ones(1), {"a": 1}, None, float("nan"), object(), [[1]]])
def test_a_measurement_refuses_what_is_no_fact_by_its_name(value: Any) -> None:
    with pytest.raises(ValueError, match="the fact 'layer' must be a text"):
        Measurement("error", 1.0, facts={"layer": value})


def test_why_there_is_no_number_is_a_fact_whoever_says_so() -> None:
    journal = Journal([], "warn", 0)
    lost = Record(step=0, name="mine/error", value=float("nan"), note="divided by 0")
    assert journal.write(lost).facts == {"why": "divided by 0"}
    said = Facts({"why": "a", "layer": "b"})
    kept = Record(step=0, name="mine/error", value=1.0, status="failed", note="c", facts=said)
    assert journal.write(kept).facts == said
    assert journal.write(Record(step=0, name="mine/error", value=1.0, note="x")).facts == NO_FACTS
    long = journal.write(Record(step=0, name="a/b", value=1.0, facts=Facts({"text": "x" * 9000})))
    assert "letters left out" in long.facts.text("text")


def test_facts_that_are_none_cost_their_row_and_are_counted(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    odd = [ROW | {"step": i, "facts": facts} for i, facts in enumerate(("x", {"a": {}}, [1]))]
    lines = [json.dumps(row) for row in (*odd, ROW | {"facts": GIVEN})]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    run = Run(tmp_path)
    assert [r.step for r in run.records()] == [3]
    assert run.torn == 3
    assert run.events[0]["message"].startswith("records.jsonl line 1: facts must be an object")


def test_facts_of_other_kinds_than_expected_break_no_finding(tmp_path: Path) -> None:
    facts = {"factor": "x", "metric": [1], "why": 3, "units": 5}
    (tmp_path / "run.json").write_text('{"format": 2}')
    (tmp_path / "records.jsonl").write_text(json.dumps(ROW | {"facts": facts}) + "\n")
    assert [f.level for f in Run(tmp_path).findings()] == ["good"]


@pytest.mark.parametrize("info", ['{"format": 1}', "{}", None, '{"format": "x"}'])
def test_a_run_that_goes_on_keeps_the_facts_of_its_old_rows(
    tmp_path: Path, info: str | None
) -> None:
    if info is not None:
        (tmp_path / "run.json").write_text(info)
    old = ROW | {"note": "sharpness * 0.0263"}
    (tmp_path / "records.jsonl").write_text(json.dumps(old) + "\n")
    again = RunDirectory(tmp_path, resume=True)
    again.write(Record(step=4, name=ROW["name"], value=0.6, facts=Facts({"factor": 0.03})))
    again.close()
    factors = [r.facts.number("factor") for r in Run(tmp_path).records()]
    assert factors == [0.0263, 0.03]


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("curvature/stability", "sharpness * 1.2.3"),
        ("curvature/stability", "sharpness * 1e999"),
        ("conservation/forecast/scale", "measured 1e99 since step " + "9" * 400),
        ("conservation/unit_drift/scale", "a: ²; b: " + "9" * 400),
        (
            "discrete/dead_share/conv1",
            "9" * 50 + " of 3 units on the only batch measured, 1 samples",
        ),
        ("discrete/duplicates", "; ; 3 more"),
    ],
)
def test_no_note_of_an_old_run_costs_its_row(tmp_path: Path, name: str, note: str) -> None:
    Facts(facts_in(name, "ok", note))
    row = ROW | {"name": name, "note": note}
    (tmp_path / "run.json").write_text('{"format": 1}')
    (tmp_path / "records.jsonl").write_text(json.dumps(row) + "\n")
    run = Run(tmp_path)
    assert (run.torn, len(run.records(name))) == (0, 1)
