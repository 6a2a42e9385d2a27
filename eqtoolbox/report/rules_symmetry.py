"""Rules about symmetry: data equivariance, parameter symmetries and the laws they imply."""

from collections import Counter
from collections.abc import Iterator

from eqtoolbox.report.finding import Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.trace import Trace, judged, trace, traces
from eqtoolbox.report.words import listing, number, percent, plural, symmetry, words

GREW = 1.5  # ratio worth a word; below it, levels count as unchanged
CHEAP = 0.01  # of the loss: a violation below this hardly matters to the task
FEW = 2  # findings of a kind that are told one by one
ORDERS = ("zeroth", "first", "second")
AGREES = 0.02  # relative: both Rayleigh quotients come from float32 products
_BLAME = ("first broken at", "wrong output action", "no single layer", "it holds with")
FLAT = 1e-6  # of the sharpness: rounding of a float32 Hessian-vector product


def equivariance(run: Log) -> Iterator[Finding]:
    """One finding a symmetry: does it hold, how did it move, what does its violation cost."""
    for name, error in traces(run, "equivariance/relative_error").items():
        evidence = [error.evidence()]
        law = f"Symmetry under {symmetry(name)}"
        size = f"relative error {number(error.now, 2)}{floor_words(error)}"
        if error.verdict == "holds":
            text = f"{law} holds as far as can be seen: {size}."
            yield Finding(level="good", text=text, evidence=tuple(evidence))
        elif error.verdict == "trivial":
            text = f"{law} is trivial: the output does not depend on the input"
            text += f" since step {since}." if (since := _constant(error)) else "."
            yield Finding(level="warning", text=text, evidence=tuple(evidence))
        elif error.verdict == "violated":
            price = trace(run, f"equivariance/percent_of_loss/{name}")
            part = None if price is None else fraction(price, price.now)
            evidence += [] if price is None else [price.evidence()]
            shrinks = error.start > GREW * error.now
            paid = (
                "" if part is None else f"; it makes {percent(part)} of the loss on moved samples"
            )
            yield Finding(
                level="note" if (part is not None and part < CHEAP) or shrinks else "warning",
                text=f"{law} is violated: {size}{_history(error)}{paid}.{_culprit(error)}",
                evidence=tuple(evidence),
            )
        else:
            why = "no noise floor was measured"
            if error.verdict == "unresolved":
                why = "too near to rounding to tell"
                why += "" if run.info.get("dtype") == "float64" else "; rerun the probe in float64"
            text = f"{law} is undecided: {size}, {why}."
            yield Finding(level="note", text=text, evidence=tuple(evidence))


def unmeasured(run: Log) -> Iterator[Finding]:
    """Claims that somebody handed over and that no step gave a number for."""
    for name, told in traces(run, "equivariance/unmeasured").items():
        if trace(run, f"equivariance/relative_error/{name}") is None:
            text = f"The claim of {symmetry(name)} was never measured: {told.last.note}."
            yield Finding(level="warning", text=text, evidence=(told.latest(),))


def _constant(error: Trace) -> int:
    """The step from which on the output is constant."""
    since = error.records[0].step
    for record in error.records:
        if judged(record) != "trivial":
            since = record.step
    later = [r.step for r in error.records if r.step > since]
    return later[0] if judged(error.records[0]) != "trivial" and later else 0


def fraction(price: Trace, value: float) -> float:
    """A part of the loss as a fraction, whether it was recorded in per cent or not."""
    return value / 100 if price.last.unit in ("%", "percent") else value


def _history(error: Trace) -> str:
    """How a violation came about, in words."""
    first = judged(error.records[0])
    violated = [judged(r) == "violated" for r in error.records]
    if first == "holds":
        return f", {error.since(violated)} (it held at the start)"
    ratio = error.now / error.start if error.start > 0 else 1.0
    if len(error.records) < 2 or 1 / GREW < ratio < GREW:
        return ""
    grown = f"grew {ratio:.2g}x" if ratio > 1 else f"shrank {1 / ratio:.2g}x"
    return f", it {grown} since the start"


def _culprit(error: Trace) -> str:
    """Which layer breaks the law and why, where the probe was asked to locate it."""
    note = error.last.note
    starts = [note.find(words) for words in _BLAME if words in note]
    if not starts:
        return ""
    said = note[min(starts) :]
    return f" {said[0].upper()}{said[1:]}."


def found(run: Log) -> Iterator[Finding]:
    """Parameter symmetries that the monitor verified, and proposals that failed."""
    dimensions: Counter[str] = Counter()
    symmetries = run.info.get("symmetries") or []
    for row in symmetries:
        if row.get("status") in ("verified", "approximate"):
            dimensions[str(row.get("family"))] += int(row.get("dimension") or 1)
    if not symmetries:
        for family, t in traces(run, "noether/dimension").items():
            dimensions[family] = round(t.last.value)
    if dimensions:
        kinds = [f"{words(family)} ({count})" for family, count in dimensions.most_common()]
        total = plural(sum(dimensions.values()), "direction")
        what = "symmetry and equivariance" if any(map(moving, dimensions)) else "symmetry"
        near = [words(f) for f in dimensions if trace(run, f"noether/epsilon/{f}") is not None]
        but = f"; {listing(near)} but for the epsilon of the normalisations" if near else ""
        text = f"{total} of parameter {what} verified before use: {listing(kinds)}{but}."
        yield Finding(level="note", text=text)
    for row in symmetries:
        if row.get("status") == "broken":
            residual = (
                f" (residual {number(float(row['residual']))})" if row.get("residual") else ""
            )
            text = f"The proposed symmetry {row.get('name')} failed its check{residual}; not used."
            yield Finding(level="note", text=text)


def laws(run: Log) -> Iterator[Finding]:
    """Identities of order 0, 1 and 2 of every family; of approximate ones see `rules_epsilon`."""
    found = {
        order: traces(run, f"noether/{order}_order") | traces(run, f"discrete/{order}_order")
        for order in ORDERS
    }
    approximate = traces(run, "noether/epsilon")
    held: dict[str, dict[str, Trace]] = {}
    for family in dict.fromkeys(f for of in found.values() for f in of if f not in approximate):
        present = {order: of[family] for order, of in found.items() if family in of}
        evidence = tuple(t.evidence() for t in present.values())
        said = {
            order: f"{order}-order residual {number(t.now, 2)}{floor_words(t)}"
            for order, t in present.items()
        }
        verdicts = {order: t.verdict for order, t in present.items()}
        broken = [order for order, verdict in verdicts.items() if verdict == "violated"]
        law = f"The {words(family)} law"
        if broken:
            worst = present[broken[0]]
            when = worst.since([judged(r) == "violated" for r in worst.records])
            what = listing([said[order] for order in broken])
            text = f"{law} is broken {when}: {what}; the loss as trained lacks this symmetry."
            yield Finding(level="warning", text=text, evidence=evidence)
        elif set(verdicts.values()) == {"holds"}:
            held[family] = present
        else:
            text = f"{law} is undecided: {listing(list(said.values()))}."
            yield Finding(level="note", text=text, evidence=evidence)
    yield from _held(held)


def _held(held: dict[str, dict[str, Trace]]) -> Iterator[Finding]:
    """The laws that hold: each by itself, or many in one sentence."""
    if len(held) > FEW:
        worst = {
            order: max((present[order] for present in held.values() if order in present), key=_now)
            for order in ORDERS
            if any(order in present for present in held.values())
        }
        said = [
            f"{order}-order residual at most {number(t.now, 2)}{floor_words(t)}"
            for order, t in worst.items()
        ]
        text = f"The laws of {listing([words(f) for f in held])} hold to rounding: {listing(said)}."
        evidence = tuple(t.evidence() for t in worst.values())
        yield Finding(level="good", text=text, evidence=evidence)
        return
    for family, present in held.items():
        said = [
            f"{order}-order residual {number(t.now, 2)}{floor_words(t)}"
            for order, t in present.items()
        ]
        text = f"The {words(family)} law holds to rounding: {listing(said)}."
        evidence = tuple(t.evidence() for t in present.values())
        yield Finding(level="good", text=text, evidence=evidence)


def _now(t: Trace) -> float:
    return t.now


def predicted_curvature(run: Log) -> Iterator[Finding]:
    """Whether the gradient alone predicts the curvature along symmetry directions."""
    sharpness = trace(run, "curvature/sharpness")
    flat = FLAT * abs(sharpness.now) if sharpness else 0.0
    right: dict[str, tuple[Trace, Trace]] = {}
    for family, measured in traces(run, "noether/rayleigh").items():
        predicted = trace(run, f"noether/predicted_rayleigh/{family}")
        if predicted is None or predicted.last.step != measured.last.step:
            continue
        m, p = measured.last.value, predicted.last.value
        noise = max(measured.error, predicted.error, flat)
        where = f"curvature along {words(family)} directions"
        said = f"predicted {number(p)}, measured {number(m)}"
        level: Level = "good"
        if max(abs(m), abs(p)) <= noise:
            text = f"The {where} is zero within its error ({said}, error {number(noise, 2)})."
        elif abs(m - p) <= AGREES * max(abs(m), abs(p)):
            right[family] = (measured, predicted)
            continue
        elif abs(m - p) <= noise:
            level = "note"
            text = f"The {where} agrees with the gradient's prediction within its error: {said}, "
            text += f"error {number(noise, 2)}."
        else:
            level = "warning"
            text = f"The {where} is not what the gradient predicts: {said}."
        yield Finding(level=level, text=text, evidence=(measured.latest(), predicted.latest()))
    sources = {family: _source(run, family) for family in right}
    for source in dict.fromkeys(sources.values()):
        yield from _right({f: pair for f, pair in right.items() if sources[f] == source}, source)


def _source(run: Log, family: str) -> str:
    """What the prediction of a curvature was made from."""
    if moving(family):
        return "gradient and outputs alone"
    near = trace(run, f"noether/epsilon/{family}") is not None
    return "gradient and epsilon alone" if near else "the gradient alone"


def _right(right: dict[str, tuple[Trace, Trace]], by: str) -> Iterator[Finding]:
    """Predictions that came true, all made from the same."""
    if len(right) > FEW:
        apart = max(abs(p.last.value / m.last.value - 1) for m, p in right.values())
        names = listing([words(f) for f in right])
        text = f"The curvature along {names} directions is predicted by {by}, to {percent(apart)}."
        evidence = tuple(t.latest() for pair in right.values() for t in pair)
        yield Finding(level="good", text=text, evidence=evidence)
        return
    for family, (measured, predicted) in right.items():
        said = f"predicted {number(predicted.last.value)}, measured {number(measured.last.value)}"
        text = f"The curvature along {words(family)} directions is predicted by {by}: {said}."
        yield Finding(level="good", text=text, evidence=(measured.latest(), predicted.latest()))


def moving(family: str) -> bool:
    """Whether a family moves the outputs: an equivariance, not a symmetry."""
    return family == "homogeneity" or family.startswith("head_")


def floor_words(t: Trace) -> str:
    """The floor of a trace in parentheses, or nothing."""
    return "" if t.floor is None else f" (floor {number(t.floor, 2)})"
