"""Is it equivariant: how far each data symmetry fails, since when, and at what price."""

from collections.abc import Iterator

from eqtoolbox.report.figures import Panel, Plot, by_target
from eqtoolbox.report.finding import Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics.depth import layer_panels
from eqtoolbox.report.trace import Curve, floor_words, judged, trace, traces
from eqtoolbox.report.words import number, percent, symmetry

GREW = 1.5  # ratio worth a word; below it, levels count as unchanged
CHEAP = 0.01  # of the loss: a violation below this hardly matters to the task
HAD = 0.1  # relative error below which a model counts as nearly symmetric


def growth(run: Log) -> Iterator[Finding]:
    """Symmetries that the model had, or nearly had, in this run and has lost."""
    for name, grown in traces(run, "equivariance/growth").items():
        error = trace(run, f"equivariance/relative_error/{name}")
        facts = grown.last.facts
        if error is None or not facts.flag("lost"):
            continue
        keep, kept = facts.number("keep"), facts.number("kept")
        fewer = ""
        if keep is not None and kept is not None:
            fewer = f"{keep:.0%} of moved samples keep their class, {kept:.0%} did"
        if fewer or error.last.value < HAD * grown.last.value:
            text = (
                f"Symmetry under {symmetry(name)} is being lost: its error is "
                f"{number(grown.last.value, 2)}x its smallest in this run"
                + (f", {fewer}." if fewer else ".")
            )
            level: Level = "alarm" if claimed(run) else "note"
            yield Finding(level=level, text=text, evidence=(grown.latest(),), id="lost-symmetry")


def claimed(run: Log) -> bool:
    """Whether somebody gave the symmetries, so that they should hold; presets only look at some."""
    return not run.info.get("preset")


def unmeasured(run: Log) -> Iterator[Finding]:
    """Claims that somebody handed over and that no step gave a number for."""
    for name, told in traces(run, "equivariance/unmeasured").items():
        if trace(run, f"equivariance/relative_error/{name}") is None:
            text = (
                f"The claim of {symmetry(name)} was never measured: {told.last.facts.text('why')}."
            )
            yield Finding(level="warning", text=text, evidence=(told.latest(),))


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
            level: Level = "warning" if claimed(run) else "note"
            yield Finding(level=level, text=text, evidence=tuple(evidence))
        elif error.verdict == "violated":
            price = trace(run, f"equivariance/percent_of_loss/{name}")
            part = None if price is None else fraction(price, price.now)
            evidence += [] if price is None else [price.evidence()]
            shrinks = error.start > GREW * error.now
            paid = (
                "" if part is None else f"; it makes {percent(part)} of the loss on moved samples"
            )
            had = judged(error.records[0]) == "holds" or error.now > GREW * error.start
            little = (part is not None and part < CHEAP) or shrinks
            yield Finding(
                level="warning" if claimed(run) and not little else "note",
                text=f"{law} is violated: {size}{_history(error)}{paid}.{_culprit(error)}",
                evidence=tuple(evidence),
                id="lost-symmetry" if had else "broken-symmetry",
            )
        else:
            why = "no noise floor was measured"
            if error.verdict == "unresolved":
                why = "too near to rounding to tell"
                why += "" if run.info.get("dtype") == "float64" else "; rerun the probe in float64"
            text = f"{law} is undecided: {size}, {why}."
            yield Finding(level="note", text=text, evidence=tuple(evidence))


def _constant(error: Curve) -> int:
    """The step from which on the output is constant."""
    since = error.records[0].step
    for record in error.records:
        if judged(record) != "trivial":
            since = record.step
    later = [r.step for r in error.records if r.step > since]
    return later[0] if judged(error.records[0]) != "trivial" and later else 0


def fraction(price: Curve, value: float) -> float:
    """A part of the loss as a fraction, whether it was recorded in per cent or not."""
    return value / 100 if price.last.unit in ("%", "percent") else value


def _history(error: Curve) -> str:
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


def _culprit(error: Curve) -> str:
    """Which layer breaks the law and why, where the probe was asked to locate it."""
    said = error.last.facts.text("blame")
    return f" {said[0].upper()}{said[1:]}." if said else ""


def equivariance_panels(run: Log) -> Iterator[Panel]:
    """How much each data symmetry is violated, and what the violation costs."""
    error = Plot(last_step=run.last_step, log=True)
    yield from by_target(
        run,
        traces(run, "equivariance/relative_error"),
        error,
        "equivariance/relative_error",
        "Relative error",
        "How far f(gx) is from g f(x), relative to the output, on a logarithmic axis: near its "
        "noise floor a symmetry holds as far as can be seen, near 1.4 the two are unrelated.",
    )
    yield from by_target(
        run,
        traces(run, "equivariance/orbit_variance"),
        Plot(last_step=run.last_step),
        "equivariance/orbit_variance",
        "Orbit variance",
        "Share of the output's variance that the transformation alone causes: at 0 the "
        "symmetry holds, at 1 the output depends on nothing else.",
    )
    price = traces(run, "equivariance/percent_of_loss").values()
    scale = 100.0 if all(fraction(t, 1.0) == 1.0 for t in price) else 1.0
    yield from by_target(
        run,
        traces(run, "equivariance/percent_of_loss"),
        Plot(last_step=run.last_step, scale=scale, suffix=" %"),
        "equivariance/percent_of_loss",
        "Cost of the violation",
        "Share of the loss on moved samples, targets moved along, that averaging the predictions "
        "over the symmetry would take away.",
    )


TOPIC = Topic(
    question="Is it equivariant?",
    slug="equivariance",
    explanation="f(g x) against g f(x) for elements g of a group, relative to the outputs, beside "
    "the floor that rounding alone makes.",
    remedy=(
        "augment the training data by it, if the task has it",
        "average the output over it, or use layers that are equivariant by construction",
    ),
    rules=(growth, unmeasured, equivariance),
    panels=(equivariance_panels, layer_panels),
    probes=("equivariance",),
)
