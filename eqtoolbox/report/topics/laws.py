"""Which laws does the loss obey: identities of order 0, 1 and 2 of its symmetries."""

import math
from collections import Counter
from collections.abc import Iterator

from eqtoolbox.report.figures import Panel, Plot, by_target
from eqtoolbox.report.finding import BROKEN_LAW, FEW, Evidence, Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.trace import Curve, floor_words, judged, trace, traces
from eqtoolbox.report.words import listing, number, plural, words

ORDERS = ("zeroth", "first", "second")


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
        what = (
            "symmetry and equivariance" if any(moving(run, f) for f in dimensions) else "symmetry"
        )
        near = [words(f) for f in dimensions if trace(run, f"noether/epsilon/{f}") is not None]
        but = f"; {listing(near)} but for the epsilon of the normalisations" if near else ""
        text = f"{total} of parameter {what} verified before use: {listing(kinds)}{but}."
        yield Finding(level="note", text=text)
    still = sum(int(r.get("dimension") or 1) for r in symmetries if r.get("status") == "inert")
    if still:
        said = "is" if still == 1 else "are"
        text = (
            f"{plural(still, 'unit')} {said} inert on the first batch: no law of theirs is checked."
        )
        yield Finding(level="note", text=text)
    for row in symmetries:
        if row.get("status") == "broken":
            residual = (
                f" (residual {number(float(row['residual']))})" if row.get("residual") else ""
            )
            text = f"The proposed symmetry {row.get('name')} failed its check{residual}; not used."
            yield Finding(level="note", text=text)


def unfound(run: Log) -> Iterator[Finding]:
    """Why no law of a parameter symmetry was measured, where one was asked for."""
    if traces(run, "noether/dimension") or traces(run, "conservation/drift"):
        return
    name = "noether/second_order"
    tried = run.records(name)[-1:] if name in run else []
    why = tried[-1].facts.text("why") if tried else ""
    if why and not tried[-1].facts.text("remedy"):  # else nothing was measured, as is told
        evidence = (Evidence(name=tried[-1].name, step=tried[-1].step, value=math.nan),)
        text = f"No law of a parameter symmetry was measured: {why}."
        yield Finding(level="note", text=text, evidence=evidence)


def laws(run: Log) -> Iterator[Finding]:
    """Identities of order 0, 1 and 2 of every family; of approximate ones see `epsilon`."""
    found = {
        order: traces(run, f"noether/{order}_order") | traces(run, f"discrete/{order}_order")
        for order in ORDERS
    }
    approximate = traces(run, "noether/epsilon")
    held: dict[str, dict[str, Curve]] = {}
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
            why = "the loss as trained lacks this symmetry"
            if verdicts.get("zeroth") == "holds":
                why = (
                    "a finite transformation leaves the loss as it is, to its floor: the break is "
                    "smaller than that, or what autograd takes for the derivative is another's, as "
                    "of a straight-through estimator or a detached part"
                )
            text = f"{law} is broken {when}: {what}; {why}."
            yield Finding(
                level="note", text=text, evidence=evidence, dated=worst.once, id=BROKEN_LAW
            )
        elif set(verdicts.values()) == {"holds"}:
            held[family] = present
        else:
            text = f"{law} is undecided: {listing(list(said.values()))}."
            yield Finding(level="note", text=text, evidence=evidence)
    yield from _held(held)


def _held(held: dict[str, dict[str, Curve]]) -> Iterator[Finding]:
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


def _now(t: Curve) -> float:
    return t.now


def moving(run: Log, family: str) -> bool:
    """Whether a family moves the outputs or takes moved inputs: an equivariance, no symmetry."""
    dimension = trace(run, f"noether/dimension/{family}")
    return dimension is not None and dimension.last.facts.flag("equivariant")


def epsilon(run: Log) -> Iterator[Finding]:
    """Whether a law that holds only approximately lacks what epsilon predicts, and no more."""
    for family, left in traces(run, "noether/epsilon").items():
        slope = trace(run, f"noether/slope/{family}")
        predicted = trace(run, f"noether/predicted_slope/{family}")
        if slope is None or predicted is None:
            continue
        second = trace(run, f"noether/epsilon_second_order/{family}")
        both = [t for t in (left, second) if t is not None]
        broken = [t for t in both if t.verdict == "violated"]
        law = f"The {words(family)} law"
        said = f"slope {number(slope.last.value, 2)} of the gradient's length measured, "
        said += f"{number(predicted.last.value, 2)} predicted"
        evidence = (slope.latest(), predicted.latest(), *(t.evidence() for t in both))
        if broken:
            when = broken[0].since([judged(r) == "violated" for r in broken[0].records])
            text = (
                f"{law} is broken {when} by more than the epsilon of the normalisations: {said}; "
            )
            text += f"{number(broken[0].now, 2)} is left{floor_words(broken[0])}."
            dated = broken[0].once
            yield Finding(level="note", text=text, evidence=evidence, dated=dated, id=BROKEN_LAW)
        elif all(t.verdict == "holds" for t in both):
            text = f"{law} holds but for the epsilon of the normalisations, which explains all of "
            text += f"it: {said}, {number(left.last.value, 2)} left{floor_words(left)}."
            yield Finding(level="good", text=text, evidence=evidence)
        else:
            text = f"{law}: whether epsilon explains what it lacks is undecided: {said}."
            yield Finding(level="note", text=text, evidence=evidence)


def law_panels(run: Log) -> Iterator[Panel]:
    """Residuals of the identities of every order, and what epsilon leaves of approximate ones."""
    for order, vector in (("zeroth", "loss"), ("first", "gradient"), ("second", "Hessian")):
        yield from by_target(
            run,
            traces(run, f"noether/{order}_order"),
            Plot(last_step=run.last_step, log=True, measure="residual"),
            f"noether/{order}_order",
            f"{order.capitalize()}-order law",
            f"Residual of the identity that the symmetry imposes on the {vector}, on a "
            "logarithmic axis: near its noise floor the symmetry is exact.",
        )
    yield from by_target(
        run,
        traces(run, "noether/epsilon"),
        Plot(last_step=run.last_step, log=True, measure="residual"),
        "noether/epsilon",
        "What epsilon leaves unexplained",
        "First-order law of approximate symmetries less what the epsilon of the normalisations "
        "predicts: near its noise floor nothing else breaks the symmetry.",
    )


TOPIC = Topic(
    question="Which laws does the loss obey?",
    slug="laws",
    explanation="Every symmetry of the parameters imposes identities on loss, gradient and "
    "Hessian; their charts stand beside the charges that they conserve.",
    rules=(found, unfound, laws, epsilon),
)
