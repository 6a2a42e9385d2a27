"""The section of a model card: verdict, findings, numbers; whatever a run says formats nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eqtoolbox.record.record import Record, Verdict
from eqtoolbox.report import Run, model_card_section
from eqtoolbox.report.model_card import BEGIN, END, PROJECT, escaped, with_section
from tests.report.runs import write_run


def run_of(home: Path, *records: Record, **info: object) -> Run:
    write_run(home, records, **info)
    return Run(home)


def losses(*values: float) -> list[Record]:
    return [Record(step=10 * k, name="training/loss", value=v) for k, v in enumerate(values)]


def law(value: float, verdict: Verdict) -> list[Record]:
    name, floor = "equivariance/relative_error/cyclic4", 2e-7
    return [
        Record(step=s, name=name, value=value, floor=floor, verdict=verdict)
        for s in range(0, 60, 10)
    ]


def test_it_says_verdict_findings_numbers_and_how_it_was_measured(tmp_path: Path) -> None:
    section = model_card_section(
        run_of(tmp_path, *losses(2.3, 1.0, 0.5, 0.2, 0.1, 0.1), *law(0.25, "violated"))
    )
    lines = section.splitlines()
    assert lines[0] == BEGIN and lines[-1] == END and "## Training diagnostics" in lines
    assert len([x for x in lines if x.startswith("- **")]) <= 3
    assert "| `worst/equivariance_error` (`equivariance/relative_error/cyclic4`) | 0.25 " in section
    assert "| `training/loss` | 0.1 |" in section
    assert "ConvNet trained by SGD was watched" in section and PROJECT in section
    assert "torch 2.13.0" in section


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((2.3, 1.0, 0.5, 0.2, 0.1, 0.1), "nothing wrong was found"),
        ((2.3, 1.0, 30.0, 1e9, float("nan"), float("nan")), "something is badly wrong"),
    ],
)
def test_the_verdict_is_the_gravest_finding(
    tmp_path: Path, values: tuple[float, ...], said: str
) -> None:
    rows = [
        Record(step=10 * k, name="training/loss", value=v, status="ok" if v == v else "non_finite")
        for k, v in enumerate(values)
    ]
    section = model_card_section(run_of(tmp_path, *rows, *law(1e-7, "holds")))
    assert f"**Verdict: {said}.**" in section
    assert ("Try: " in section) == ("badly" in said)


HOSTILE = "<script>alert(1)</script> [x](http://e) `a` *b* _c_ | d\n# head ~~e~~ $f$ ![i](j) &lt;"


def test_what_a_run_says_formats_nothing(tmp_path: Path) -> None:
    line = escaped(HOSTILE)
    assert "\n" not in line and "<" not in line and ">" not in line
    assert not re.search(r"(?<!\\)[`*_\[\]|#~$!]", line)
    info = {"model": {"class": HOSTILE}, "torch": HOSTILE, "probes": {HOSTILE: {}, "good": {}}}
    section = model_card_section(run_of(tmp_path, *losses(1.0, 0.5), **info))
    assert "<script" not in section and "](http://e)" not in section.replace("\\]", "")
    assert "Probes: `good`." in section


def test_the_section_is_put_in_the_place_of_an_earlier_one() -> None:
    card = "---\nlicense: mit\n---\n\n# Model\n\nText.\n"
    once = with_section(card, f"{BEGIN}\n\nold\n\n{END}\n")
    assert once == f"{card}\n{BEGIN}\n\nold\n\n{END}\n"
    again = with_section(once + "\n## More\n", f"{BEGIN}\n\nnew\n\n{END}\n")
    assert again == f"{card}\n{BEGIN}\n\nnew\n\n{END}\n\n## More\n"
    assert with_section("", f"{BEGIN}x{END}") == f"{BEGIN}x{END}\n"


def test_an_empty_run_has_a_section_and_no_torch_is_needed(tmp_path: Path) -> None:
    run_of(tmp_path)
    code = (
        "import sys; from eqtoolbox.report import Run, model_card_section;"
        f"text = model_card_section(Run({str(tmp_path)!r}));"
        "assert 'torch' not in sys.modules; print(text)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Verdict" in ran.stdout
