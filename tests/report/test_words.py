"""Small words: numbers in words, and lazy names resolve."""

import pytest

import eqtoolbox.report
from eqtoolbox.report.trace import judged, onset
from eqtoolbox.report.words import number, percent, typeset
from tests.report.runs import series


def test_public_names_resolve() -> None:
    for name in eqtoolbox.report.__all__:
        assert getattr(eqtoolbox.report, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'compare'"):
        eqtoolbox.report.compare  # noqa: B018


@pytest.mark.parametrize("x", [1.0, -0.5, 99.96, 123456.0, 3e-12, -2.5e8, 1e-3, 0.0999999])
def test_a_number_is_short_and_right_to_three_digits(x: float) -> None:
    assert float(number(x)) == pytest.approx(x, rel=5.1e-3)
    assert len(number(x)) <= 8


@pytest.mark.parametrize("fraction", [0.0312, 0.917, 1.0, 0.0004, 1e-9, 0.0, -0.3])
def test_a_percentage_reads_back(fraction: float) -> None:
    assert float(percent(fraction).removesuffix(" %")) == pytest.approx(
        100 * fraction, rel=0.02, abs=1e-30
    )


def test_typesetting_leaves_names_and_codes_alone() -> None:
    for text in ("conv2-gelu, unit 5", "aten::_foo-3", "sha 1e5f", "0x1f", "2-3"):
        assert typeset(text) == text
    assert typeset("at 1e-7 or -0.5") == "at 10⁻⁷ or −0.5"


def test_onset_ignores_a_blip_and_finds_the_change() -> None:
    flags = [False] * 20
    flags[3] = True
    assert onset(flags) is None
    assert onset([False] * 10 + [True] * 10) == 10
    assert onset([True] * 5) == 0
    assert onset([]) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("noether/second_order/scale", "violated"), ("noether/rayleigh/scale", None)],
)
def test_only_a_law_is_judged_by_its_floor_alone(name: str, expected: str | None) -> None:
    (record,) = series(name, [0.5], floor=1e-7)
    assert judged(record) == expected
