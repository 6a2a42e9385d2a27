"""One table tells what words mean: complete, true to names in the code, the same everywhere."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from eqtoolbox.command.cli import main
from eqtoolbox.record.record import Status, Verdict
from eqtoolbox.report.explained import explained, meanings
from eqtoolbox.report.glossary import markdown, nearest, term, terms
from eqtoolbox.report.words import CAUSES

ROOT = Path(__file__).parents[2]
FAMILIES = re.findall(
    r'family: ClassVar\[str\] = "(\w+)"',
    "".join(p.read_text() for p in sorted((ROOT / "eqtoolbox/weights/families").glob("*.py"))),
)
ASKED = ["charge", "orbit", "sharpness", "stability", "drift", "defect", "verdict", "family"]


def test_every_family_verdict_status_and_cause_has_an_entry() -> None:
    words = [*FAMILIES, *get_args(Verdict), *get_args(Status), *ASKED, "noise floor"]
    causes = [said if cause != "decay" else "weight decay" for cause, said in CAUSES.items()]
    assert len(set(FAMILIES)) >= 15
    assert [w for w in (*words, *causes) if term(w) is None and w != "ok"] == []


def test_the_laws_page_and_the_glossary_name_the_same_families() -> None:
    table = (ROOT / "docs/laws.md").read_text().split("| family |")[1].split("\n\n")[0]
    rows = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row)}
    told = {t.pattern.replace(" ", "_") for t in terms() if t.section == "Families"}
    assert rows == told == set(FAMILIES)


def test_entries_are_sentences_and_their_records_are_there() -> None:
    known = {m.pattern for m in meanings()}
    for t in terms():
        assert t.meaning.endswith("."), t.pattern
        assert set(t.see) <= known, t.pattern
        assert "http" not in str(t)


def test_no_word_has_two_entries() -> None:
    words = [w for t in terms() for w in (t.pattern, *t.also)]
    assert len(set(words)) == len(words)
    assert all(term(w) is not None for w in words)


def test_a_word_that_is_a_record_has_the_text_of_the_record() -> None:
    floor, column = term("noise floor"), explained("floor")
    assert floor is not None and column is not None
    assert (floor.meaning, floor.formula) == (column.meaning, column.formula)


def test_the_page_of_the_docs_is_the_table() -> None:
    assert (ROOT / "docs" / "glossary.md").read_text() == markdown(), (
        "write it anew: python -c 'from eqtoolbox.report.glossary import markdown; "
        'print(markdown(), end="")\' > docs/glossary.md'
    )


@pytest.mark.parametrize(
    "word", ["charge", "Head_Rotation", "equivariance error", "edge of stability"]
)
def test_the_command_line_tells_the_same(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = term(word)
    assert found is not None
    assert main(["explain", word]) == 0
    said = capsys.readouterr().out
    assert said.startswith(str(found)) and found.meaning in markdown()
    assert main(["explain", word, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["meaning"] == found.meaning


def test_a_word_stands_above_the_records_that_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "drift"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("drift\n") and "\nconservation/step_drift/<family>" not in said
    assert "\nconservation/drift/<family>  How far" in said


def test_a_word_spelled_nearly_so_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert nearest("equivariannce") is term("equivariance") and nearest("qqqq") is None
    assert main(["explain", "invarience"]) == 0
    assert "There is no record 'invarience'; this is near:\n\ninvariance\n" in (
        capsys.readouterr().out
    )
