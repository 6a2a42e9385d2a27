"""Rules about conservation: how far the charges drifted, and what made them drift."""

import math
from collections.abc import Iterator
from dataclasses import replace

from eqtoolbox.record.record import Record
from eqtoolbox.report.finding import Evidence, Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.rules_symmetry import FEW, floor_words
from eqtoolbox.report.trace import Trace, judged, trace, traces
from eqtoolbox.report.words import CAUSES, listing, number, percent, plural, words

CANCEL = 3.0  # share of a drift from which causes are said to cancel, not given as shares
OUTLIER = 5.0  # times the mean: the worst unit is then named
MENTIONED = 0.01  # share of a drift below which a cause is left out of the sentence
NEAR = 0.03  # of an equilibrium norm: |w|^4 is then within about 10 %
RECENT = 0.95  # of the run's steps: budgets that were recorded since speak for its end
ALL = 0.01  # distance from a drift of 100 % of what the charge can be
UNEXPLAINED = 0.3  # share of a drift that no measured step explains, from which none is trusted
UNMEASURED = 0.05  # share of a drift that may stay unexplained without being mentioned
ROUNDING = {"float64": 2.2e-16, "float32": 1.2e-7, "float16": 9.8e-4, "bfloat16": 7.8e-3}


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
            unit = f" in {worst.last.note}" if worst.last.note else ""
            far = f"; the worst one by {percent(abs(worst.last.value))}{unit}"
            evidence.append(worst.latest())
        term = trace(run, f"conservation/symmetry/{family}")
        broken = abs(shares.get("symmetry", (None, 0.0))[1]) > UNMEASURED
        broken = broken and (term is None or term.verdict != "holds")
        held = law_held(run, family)  # then the charges moved by what its floor allows
        undecided = law_undecided(run, family)
        broken = broken and not held and not undecided
        span = "since the start" if drift.last.step else "in the first step"
        about = f" ± {percent(last.stderr)}" if last.stderr else ""
        beside = trace(run, f"conservation/closure/{family}")
        moved = beside is not None and beside.verdict == "violated"
        causes = _causes(shares, cause_words(held, undecided), moved)
        text = f"{charges} drifted {percent(size)}{about} {span}{causes}{far}."
        yield Finding(level="warning" if broken else "note", text=text, evidence=tuple(evidence))


def _exact(drift: Trace) -> Record:
    """The newest drift; of one that is estimated at most steps, a recent one that is not."""
    recent = [r for r in drift.records if r.step >= RECENT * drift.last.step and not r.stderr]
    return recent[-1] if recent else drift.last


def drifts(run: Log) -> dict[str, Trace]:
    """Drifts by family; without a floor of their own they get that of rounding.

    Every update rounds the parameters by up to one unit in their last place; over n steps these
    errors add up like a random walk, to sqrt(n) units.
    """
    unit = ROUNDING.get(str(run.info.get("dtype")))
    found = traces(run, "conservation/drift")
    if unit is None:
        return found
    return {
        family: replace(
            t,
            records=tuple(
                r if r.floor else replace(r, floor=unit * math.sqrt(r.step + 1)) for r in t.records
            ),
        )
        for family, t in found.items()
    }


def equilibrium(run: Log) -> Iterator[Finding]:
    """How far the norm of scale-symmetric weights is from where decay and gradient balance."""
    for family, ratio in traces(run, "conservation/equilibrium").items():
        steps = trace(run, f"conservation/equilibrium_steps/{family}")
        rate = trace(run, f"conservation/effective_lr/{family}")
        if steps is None or rate is None:
            continue
        near = abs(ratio.now - 1) <= NEAR
        state = "at" if near else f"{number(ratio.now, 2)}x"
        left = "" if near else f", about {number(steps.now, 2)} steps away"
        text = (
            f"The norms of {family}-symmetric weights are {state} their equilibrium of decay and "
            f"gradient{left}; their effective learning rate lr/|w|^2 is {number(rate.now, 2)}."
        )
        yield Finding(level="note", text=text, evidence=(ratio.evidence(), steps.evidence()))


def gradient_laws(run: Log) -> Iterator[Finding]:
    """Whether the gradient that the optimizer was given obeys the laws, at every step."""
    obeyed: dict[str, Trace] = {}
    for family, law in traces(run, "conservation/first_order").items():
        size = _size(run, family, law)
        name = words(family)
        if law.verdict == "violated":
            when = law.since([judged(r) == "violated" for r in law.records])
            text = (
                f"The training gradient breaks the {name} law {when}: {size}; something beside "
                "the loss shapes it, such as a penalty added to it, or the loss lost the symmetry."
            )
            yield Finding(level="warning", text=text, evidence=(law.evidence(),))
        elif law.verdict == "holds" and not law_undecided(run, family):
            broken = sum(judged(r) == "violated" for r in law.records)
            if not broken:
                obeyed[family] = law
                continue
            every = f"at {len(law.records) - broken} of {plural(len(law.records), 'step')}"
            text = f"The training gradient obeys the {name} law {every}: {size}."
            yield Finding(level="note", text=text, evidence=(law.evidence(),))
    yield from _obeyed(run, obeyed)


def _size(run: Log, family: str, law: Trace) -> str:
    """How large a slope is; of an approximate law also what its epsilon leaves unexplained."""
    size = f"slope {number(law.now, 2)} of the gradient's length{floor_words(law)}"
    left = trace(run, f"conservation/epsilon/{family}")
    if left is None or law.last.step != left.last.step:
        return size
    return f"{size}, of which epsilon leaves {number(left.now, 2)}"


def _obeyed(run: Log, obeyed: dict[str, Trace]) -> Iterator[Finding]:
    """Laws that the training gradient never broke: each by itself, or many in one sentence."""
    near = {f: law for f, law in obeyed.items() if trace(run, f"conservation/epsilon/{f}")}
    if near and len(near) < len(obeyed):  # a slope that epsilon explains is no measure of others
        yield from _obeyed(run, near)
        obeyed = {f: law for f, law in obeyed.items() if f not in near}
    steps = {len(law.records) for law in obeyed.values()}
    if not near and len(obeyed) > FEW and len(steps) == 1:
        worst = max(obeyed.values(), key=lambda law: max(r.value for r in law.records))
        peak = max(worst.records, key=lambda r: r.value)
        laws, size = listing([words(f) for f in obeyed]), number(peak.value, 2)
        count = f"all {max(steps)} steps" if max(steps) > 1 else "the one step measured"
        text = (
            f"The training gradient obeys the laws of {laws} at {count}: "
            f"slope at most {size} of the gradient's length"
            f"{floor_words(replace(worst, records=(peak,)))}."
        )
        yield Finding(level="good", text=text, evidence=(replace(worst, records=(peak,)).latest(),))
        return
    for family, law in obeyed.items():
        total = len(law.records)
        text = (
            f"The training gradient obeys the {words(family)} law at {total} of "
            f"{plural(total, 'step')}: {_size(run, family, law)}."
        )
        yield Finding(level="good", text=text, evidence=(law.evidence(),))


def budget_closure(run: Log) -> Iterator[Finding]:
    """Budgets of charges that do not close: something else moved the parameters."""
    for family, gap in traces(run, "conservation/closure").items():
        if gap.verdict == "violated":
            text = (
                f"The budget of the {family} charges does not close ({number(gap.now, 2)}"
                f"{floor_words(gap)}): something beside the optimizer step moves the parameters."
            )
            yield Finding(level="warning", text=text, evidence=(gap.evidence(),))


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


def law_held(run: Log, family: str) -> bool:
    """Whether the gradient is known to have obeyed the family's law at every step."""
    law = trace(run, f"conservation/first_order/{family}")
    return law is not None and all(judged(r) == "holds" for r in law.records)


def law_undecided(run: Log, family: str) -> bool:
    """Whether the gradient's law is that of an approximate symmetry, above rounding, not broken."""
    law = trace(run, f"conservation/first_order/{family}")
    return (
        law is not None
        and law.verdict != "violated"
        and any(r.verdict == "unresolved" and "epsilon" in r.note for r in law.records)
    )


def _born(worst: Trace) -> bool:
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
