"""What is conserved, and what breaks it: how far charges drifted, and through what."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from eqtoolbox.record.record import Record
from eqtoolbox.report.drawing import GREY, PALETTE, faded, usual
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import BROKEN_LAW, Evidence, Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics.charges import (
    charge_panels,
    drift_panel,
    drifts,
    law_held,
    law_undecided,
)
from eqtoolbox.report.topics.flow import forecast_panel
from eqtoolbox.report.topics.gradient import gradient_panels
from eqtoolbox.report.topics.laws import law_panels
from eqtoolbox.report.trace import Curve, arrays, floor_words, judged, trace
from eqtoolbox.report.words import CAUSES, listing, number, percent, words

CANCEL = 3.0  # share of a drift from which causes are said to cancel, not given as shares
OUTLIER = 5.0  # times the mean: the worst unit is then named
MENTIONED = 0.01  # share of a drift below which a cause is left out of the sentence
RECENT = 0.95  # of the run's steps: budgets that were recorded since speak for its end
ALL = 0.01  # distance from a drift of 100 % of what the charge can be
UNEXPLAINED = 0.3  # share of a drift that no measured step explains, from which none is trusted
UNMEASURED = 0.05  # share of a drift that may stay unexplained without being mentioned
VISIBLE = 5e-3  # share below which a cause is left out of the figure
CAUSE_COLOURS = {
    "symmetry": PALETTE[1],
    "implicit_bias": PALETTE[0],
    "decay": PALETTE[4],
    "optimizer": PALETTE[3],
    "finite_step": PALETTE[5],
    "learning_rates": PALETTE[2],
    "act": PALETTE[0],
    "unmeasured": GREY,
}


def conservation(run: Log) -> Iterator[Finding]:
    """One finding a family: how far its charges drifted, and through what."""
    for family, drift in drifts(run).items():
        last = _exact(drift)
        size, evidence = abs(last.value), [replace(drift, records=(last,)).latest()]
        charges = f"{family.capitalize().replace('_', ' ')} charges"
        if size <= (drift.last.floor or 0.0):
            text = f"{charges} are conserved: relative drift {number(size, 2)}{floor_words(drift)}."
            yield Finding(level="good", text=text, evidence=tuple(evidence))
            continue
        shares = _shares(run, family, drift.last.step)
        evidence += [e for e, share in shares.values() if abs(share) >= MENTIONED]
        worst = trace(run, f"conservation/worst_drift/{family}")
        far = ""
        if worst is not None and abs(worst.last.value) > OUTLIER * size > 0 and not _born(worst):
            which = worst.last.facts.text("which")
            unit = f" in {'layer ' * which[0].isdigit()}{which}" if which else ""
            far = f"; the worst one by {percent(abs(worst.last.value))}{unit}"
            evidence.append(worst.latest())
        term = trace(run, f"conservation/symmetry/{family}")
        broken = abs(shares.get("symmetry", (None, 0.0))[1]) > UNMEASURED
        broken = broken and (term is None or term.verdict != "holds")
        held = law_held(run, family)  # then the charges moved by what its floor allows
        undecided = law_undecided(run, family)
        broken = broken and not held and not undecided
        span = _span(drift.last)
        about = f" ± {percent(last.stderr)}" if last.stderr else ""
        beside = trace(run, f"conservation/closure/{family}")
        moved = beside is not None and beside.verdict == "violated"
        causes = _causes(shares, cause_words(held, undecided), moved)
        text = f"{charges} drifted {percent(size)}{about} {span}{causes}{far}."
        told = BROKEN_LAW if broken else ""
        yield Finding(level="note", text=text, evidence=tuple(evidence), id=told)


def _span(drift: Record) -> str:
    """Since when a drift is counted: not from the start where parameters were added later."""
    begun = drift.facts.number("begun")
    if begun:
        return f"since step {begun:.0f}" if drift.step > begun else f"in step {begun:.0f}"
    return "since the start" if drift.step else "in the first step"


def _exact(drift: Curve) -> Record:
    """The newest drift; of one that is estimated at most steps, a recent one that is not."""
    last, known = drift.last, ~(drift.numbers("stderr") > 0)
    recent = np.flatnonzero(known & (drift.steps >= RECENT * last.step))
    return drift.records[int(recent[-1])] if recent.size else last


def cause_words(held: bool, undecided: bool = False) -> dict[str, str]:
    """The causes in words; a slope is no broken symmetry while its law holds or is undecided."""
    if undecided:
        return CAUSES | {"symmetry": "a slope that an epsilon may leave"}
    return CAUSES | ({"symmetry": "a slope within its floor"} if held else {})


def _shares(run: Log, family: str, step: int) -> dict[str, tuple[Evidence, float]]:
    """Shares of the drift by cause, as last recorded up to a step, largest first."""
    found = {}
    for cause in CAUSES:
        share = trace(run, f"conservation/share_{cause}/{family}")
        if share is not None and RECENT * step <= share.last.step <= step:
            found[cause] = (share.latest(), share.last.value)
    return dict(sorted(found.items(), key=lambda item: -abs(item[1][1])))


def _born(worst: Curve) -> bool:
    """Whether the charge is all drift: it was zero at the start, as that of a bias born at zero."""
    return abs(abs(worst.last.value) - 1) < ALL


def _causes(shares: dict[str, tuple[Evidence, float]], words: dict[str, str], moved: bool) -> str:
    """The causes of a drift in words; `moved`: something beside the step moves parameters."""
    unknown = shares.get("unmeasured", (None, 0.0))[1]
    if abs(unknown) > UNEXPLAINED and not moved:
        return _named(shares, words)
    parts = []
    for cause, (_, share) in shares.items():
        if abs(share) > (UNMEASURED if cause == "unmeasured" else MENTIONED):
            parts.append(f"{percent(share)} {words[cause]}")
    if not parts:
        return ""
    cancelling = _cancelling(shares, words) if abs(unknown) <= UNEXPLAINED else ""
    if cancelling:
        return cancelling
    known = [share for cause, (_, share) in shares.items() if cause != "unmeasured"]
    remark = " (negative: against the drift)" if min(known, default=0.0) < -MENTIONED else ""
    return f": {', '.join(parts)}{remark}"


def _named(shares: dict[str, tuple[Evidence, float]], words: dict[str, str]) -> str:
    """Causes without their shares, where the measured steps do not stand for the others."""
    told = {c: share for c, (_, share) in shares.items() if c != "unmeasured"}
    largest = max(map(abs, told.values()), default=0.0)
    names = [words[c] for c, share in told.items() if abs(share) > max(MENTIONED, largest / 10)]
    why = "the measured steps do not explain it: measure more often"
    return f", in the measured steps through {listing(names)} ({why})" if names else f" ({why})"


def _cancelling(shares: dict[str, tuple[Evidence, float]], words: dict[str, str]) -> str:
    """Causes many times as large as the drift, which is their small difference, in words."""
    told = [(c, share) for c, (_, share) in shares.items() if abs(share) > MENTIONED]
    if not told or abs(told[0][1]) <= CANCEL:
        return ""
    large = [(c, share) for c, share in told if abs(share) > 1]
    terms = listing([f"{words[c]} {share:+.3g}x" for c, share in large])
    if len(large) < 2:  # what cancels it is spread over small causes
        return f": {terms} of this net drift, nearly cancelled by the other causes"
    return f": {terms} of this net drift nearly cancel"


def cause_panels(run: Log) -> Iterator[Panel]:
    """What moved the charges of every family that are not conserved."""
    for family, drift in drifts(run).items():
        if judged(drift.last) != "holds":
            yield from _cause_panel(run, family)


def _cause_panel(run: Log, family: str) -> Iterator[Panel]:
    """Shares of the drift by cause; the budget of single steps where shares are missing."""
    shares = {c: trace(run, f"conservation/share_{c}/{family}") for c in CAUSES}
    terms = {c: trace(run, f"conservation/{c}/{family}") for c in CAUSES}
    title = f"What moved the {words(family)} charges"
    said = cause_words(law_held(run, family), law_undecided(run, family))
    if any(shares.values()):
        shown = {c: t for c, t in shares.items() if t and _size(t) > VISIBLE}
        plot = Plot(last_step=run.last_step, scale=100.0, suffix=" %", measure="share of the drift")
        stacked = all(arrays(t)[1].min() > -VISIBLE for t in shown.values())
        reading = (
            "Causes of the drift since the start, each measured step standing for those just "
            "before it; together 100 %."
        )
        if not stacked:
            reading = f"{reading[:-1]}, negative against the drift."
    else:
        shown = {c: t for c, t in terms.items() if t and _size(t) > 0}
        plot = Plot(last_step=run.last_step, measure="relative change in one step")
        stacked = False
        reading = "Relative change of the charges in one step, by cause, along the step's drift."
    for cause, t in shown.items():
        colour = CAUSE_COLOURS[cause]
        drawn: dict[str, Any] = {"width": 0, "dash": "solid"} if stacked else {}
        drawn |= {"value": t.last.value} if any(shares.values()) else {}  # since the start
        plot.line(t, said[cause], colour, **drawn)
        if stacked:
            area = {"stackgroup": "causes", "fillcolor": faded(colour, 0.6), "mode": "lines"}
            plot.data[-1] |= area
    if plot.data and stacked:
        yield plot.panel(f"causes-{family}", title, reading, range=[0, 101])
    elif plot.data:
        shown_range = usual([t["y"] for t in plot.data])
        reading += " A double click shows what lies beyond the axis." if shown_range else ""
        yield plot.panel(f"causes-{family}", title, reading, **shown_range)


def _size(t: Curve) -> float:
    return float(np.abs(arrays(t)[1]).max())


TOPIC = Topic(
    question="What is conserved, and what breaks it?",
    slug="conservation",
    explanation="A symmetry of the loss conserves a charge of the parameters under gradient flow; "
    "decay, momentum, finite steps and whatever breaks the symmetry move it.",
    rules=(conservation,),
    panels=(
        drift_panel,
        forecast_panel,
        cause_panels,
        charge_panels,
        gradient_panels,
        law_panels,
    ),
    probes=("noether", "conservation"),
)
