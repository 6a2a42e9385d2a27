"""Findings and panels about learned symmetry, growing violations and asymmetric data."""

from pathlib import Path

from eqtoolbox.report.run import Run
from eqtoolbox.report.sections import sections
from tests.report.runs import missing, series, write_run


def spectrum(low: list[float]) -> list:
    """Nine singular values, the first three of them `low` at each step."""
    rows = []
    for rank in range(9):
        values = [v * (1 + rank) if rank < 3 else 0.3 + 0.02 * rank for v in low]
        rows += series(f"discovery/singular_value/{rank}", values)
    return rows


def opened(home: Path) -> Run:
    rows = spectrum([0.2, 0.05, 0.004, 0.003])
    for name, values in (("gap", [1.5, 3, 27, 36]), ("null_gap", [1.2, 1.1, 1.1, 1.1])):
        rows += series(f"discovery/{name}", values)
    for step, (count, note) in enumerate(
        [(0, "no gap"), (0, "no gap"), (3, "so(3)"), (3, "so(3)")]
    ):
        (row,) = series("discovery/dimension", [count], note=note)
        rows.append(type(row)(**{**vars(row), "step": 10 * step}))
    return Run(write_run(home, rows))


def texts(run: Run, word: str) -> list[tuple[str, str]]:
    return [(f.level, f.text) for f in run.findings() if word in f.text]


def test_a_learned_algebra_is_named_with_the_step_it_came_at(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    ((level, text),) = texts(run, "continuous symmetry of 3 dimensions")
    assert level == "good"
    assert "so(3), since step 20: gap 36 (shuffled data 1.1)" in text
    (section,) = [s for s in sections(run) if s.slug == "discovery"]
    lines = section.panels[0].figure["data"]
    assert len(lines) == 9
    colours = [line["line"]["color"] for line in lines]
    assert len(set(colours[:3])) == 1 and colours[2] != colours[3]


def test_no_algebra_is_a_note(tmp_path: Path) -> None:
    rows = series("discovery/dimension", [0.0, 0.0], note="no gap")
    rows += series("discovery/gap", [1.5, 2.0]) + series("discovery/null_gap", [1.1, 1.1])
    ((level, text),) = texts(Run(write_run(tmp_path / "run", rows)), "No continuous linear")
    assert level == "note"
    assert "largest gap 2 (shuffled data 1.1)" in text


def test_what_is_not_identifiable_is_a_remark_with_its_reason(tmp_path: Path) -> None:
    rows = missing("discovery/dimension", [0, 10], "not_applicable", "8 rows for 9 unknowns")
    run = Run(write_run(tmp_path / "run", rows))
    (section,) = [s for s in sections(run) if s.slug == "discovery"]
    assert any("8 rows for 9 unknowns" in remark for remark in section.remarks)
    assert not texts(run, "continuous")


def test_a_symmetry_that_was_there_and_is_lost_is_an_alarm(tmp_path: Path) -> None:
    """Not one that never was, nor one that is as it was."""
    cases = {"lost": [0.001, 0.002, 0.04], "never": [0.3, 0.6, 1.3], "calm": [0.001] * 3}
    for name, errors in cases.items():
        rows = series("equivariance/relative_error/cyclic4", errors, verdict="violated")
        growth = [e / errors[0] for e in errors]
        grown = series("equivariance/growth/cyclic4", growth)
        if growth[-1] > 3:
            note = f"alarm: {growth[-1]:.1f} times its smallest"
            grown[-1] = type(grown[-1])(**{**vars(grown[-1]), "note": note})
        found = texts(Run(write_run(tmp_path / name, rows + grown)), "is being lost")
        assert bool(found) == (name == "lost")
        if found:
            ((level, text),) = found
            assert level == "alarm" and "quarter turns" in text and "40x" in text


def test_asymmetric_data_and_opposed_gradients_are_notes(tmp_path: Path) -> None:
    rows = series("asymmetry/data/flip", [0.02] * 3, floor=0.003, verdict="violated")
    rows += series("asymmetry/cosine/flip", [-0.4] * 3) + series("asymmetry/share/flip", [0.3] * 3)
    rows += series("asymmetry/data/cyclic4", [0.001] * 3, floor=0.003, verdict="holds")
    rows += series("asymmetry/cosine/cyclic4", [0.2] * 3)
    run = Run(write_run(tmp_path / "run", rows))
    ((level, text),) = texts(run, "data are not symmetric")
    assert level == "note" and "flips" in text and "0.003" in text
    ((_, text),) = texts(run, "Fitting the data breaks")
    assert "flips" in text and "-0.4" in text and "30 %" in text
    (section,) = [s for s in sections(run) if s.slug == "asymmetry"]
    assert [p.slug for p in section.panels] == [
        "asymmetry-cosine",
        "asymmetry-share",
        "asymmetry-data",
    ]
